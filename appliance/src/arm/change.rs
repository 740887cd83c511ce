//! A change of a pool, from its turn to its end. It runs to its end, whoever waits for it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;

use super::Arm;
use super::conditions::{Conditions, goal};
use super::operations::Ticket;
use super::pools::no_such_pool;
use super::properties::{Address, Draft, draft, finished, image_target, patched};
use super::resource;
use super::version::Shape;
use crate::admin::{ImageHold, ImageSummary, PullOrder};
use crate::front::refusal::{Code, Refusal};
use crate::images::registry::Reporter;
use crate::pool::launcher::PrepareFailure;
use crate::pool::{PoolChangeError, Put};
use crate::store::PoolRecord;

/// What a pool is to become.
pub enum Ask {
    /// All of it.
    Put(Value),
    /// A part: RFC 7396.
    Patch(Value),
}

/// A change that somebody wants.
pub struct Wanted {
    pub ask: Ask,
    pub shape: Shape,
    pub address: Address,
    pub conditions: Conditions,
}

/// What a change has come to.
type Changed = Result<(Arc<PoolRecord>, Put), Refusal>;

/// An answer that need not be waited for.
pub struct Outcome<T>(oneshot::Receiver<Result<T, Refusal>>);

impl<T> IntoFuture for Outcome<T>
where
    T: Send + 'static,
{
    type Output = Result<T, Refusal>;
    type IntoFuture = std::pin::Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async {
            let lost = |error| Err(Refusal::internal("The change of the pool was lost", error));
            self.0.await.unwrap_or_else(lost)
        })
    }
}

impl Arm {
    /// What the pool would be. `current`: what it is by then.
    pub fn draft(&self, wanted: &Wanted, current: Option<&PoolRecord>) -> Result<Draft, Refusal> {
        let (rules, vault) = (&self.parts.rules, &self.parts.vault);
        let read =
            |body: &Value| draft(body, &wanted.shape, &wanted.address, current, rules, vault);
        match &wanted.ask {
            Ask::Put(body) => read(body),
            Ask::Patch(patch) => {
                let current = current.ok_or_else(|| no_such_pool(&wanted.address))?;
                read(&patched(current, patch.clone(), &resource::id(current))?)
            }
        }
    }

    pub fn start_change(
        self: &Arc<Self>,
        wanted: Wanted,
        ticket: Ticket,
    ) -> Outcome<(Arc<PoolRecord>, Put)> {
        let (tell, told) = oneshot::channel();
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let changed = this.change(&wanted, &ticket).await;
            note(&ticket, &wanted.address.name, changed.as_ref().err());
            ticket.end(changed.as_ref().err()).await;
            let _ = tell.send(changed);
        });
        Outcome(told)
    }

    pub fn start_delete(self: &Arc<Self>, pool: Arc<PoolRecord>, ticket: Ticket) -> Outcome<()> {
        let (tell, told) = oneshot::channel();
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let deleted = this.delete(&pool, &ticket).await;
            note(&ticket, pool.name.as_str(), deleted.as_ref().err());
            ticket.end(deleted.as_ref().err()).await;
            let _ = tell.send(deleted);
        });
        Outcome(told)
    }

    async fn change(&self, wanted: &Wanted, ticket: &Ticket) -> Changed {
        ticket.turn().await;
        // Others may have changed the pool since it was asked for.
        let current = self.find(&wanted.address)?.made().cloned();
        let current = current.as_deref();
        wanted.conditions.check(current)?;
        let draft = self.draft(wanted, current)?;
        let found = tokio::select! {
            biased;
            () = ticket.until_given_up() => Err(ticket.given_up()),
            found = self.with_image(draft, current) => found.map_err(Some),
        };
        let given_up = || closing("The change was given up");
        let (pool, _held) = found.map_err(|why| why.unwrap_or_else(given_up))?;
        ticket.aim(goal(&pool)).await?;
        if let Some(reason) = ticket.given_up() {
            return Err(reason);
        }
        self.parts.pools.put(pool).await.map_err(not_changed)
    }

    /// The pool with its image, which stays as long as the second part does.
    async fn with_image(
        &self,
        draft: Draft,
        current: Option<&PoolRecord>,
    ) -> Result<(PoolRecord, Vec<ImageHold>), Refusal> {
        let Draft { pool, order } = draft;
        let image = self.pull(order.clone()).await?;
        let pool = finished(pool, &image, &self.parts.vault)?;
        // Until the pools know that it is needed, and the other one that it is not.
        let digests = [Some(&pool), current].into_iter().flatten();
        let held = digests.map(|pool| self.parts.keeper.hold(&pool.image_digest));
        let held = held.collect();
        // Once more, which is nothing to do if it is there: somebody may have removed it before it was held.
        let digest = Some(pool.image_digest.clone());
        self.pull(PullOrder { digest, ..order }).await?;
        Ok((pool, held))
    }

    async fn pull(&self, order: PullOrder) -> Result<ImageSummary, Refusal> {
        let pulled = self.parts.images.pull(order, Reporter::default()).await;
        let (image, _) = pulled.map_err(|refusal| refusal.target(image_target()))?;
        Ok(image)
    }

    /// Until nothing is left of the pool.
    async fn delete(&self, pool: &PoolRecord, ticket: &Ticket) -> Result<(), Refusal> {
        let _held = self.parts.keeper.hold(&pool.image_digest);
        let delete = || self.parts.pools.delete(pool.name.clone());
        // What is being prepared is given up, so that the turn comes soon.
        delete().await.map_err(not_changed)?;
        ticket.turn().await;
        delete().await.map_err(not_changed)?;
        Ok(())
    }
}

/// What nobody may be waiting for is in the log.
fn note(ticket: &Ticket, pool: &str, failure: Option<&Refusal>) {
    let (operation, kind) = (ticket.id(), ticket.kind());
    match failure {
        None => tracing::info!(%operation, pool, ?kind, "done"),
        Some(refusal) => tracing::warn!(
            %operation,
            pool,
            ?kind,
            code = refusal.code.as_str(),
            cause = refusal.cause.as_ref().map(|cause| format!("{cause:#}")),
            "not done"
        ),
    }
}

pub fn not_changed(error: PoolChangeError) -> Refusal {
    let message = error.to_string();
    match error {
        PoolChangeError::NameInUse { .. } => Refusal::new(Code::SessionPoolNameInUse, message),
        PoolChangeError::TooLarge { source, .. } => {
            Refusal::new(Code::SessionPoolInvalidProperty, message).target(source.property)
        }
        PoolChangeError::NotPrepared { failure, .. } => not_prepared(&failure),
        PoolChangeError::Withdrawn { .. } => closing(message),
        PoolChangeError::Store { .. } => Refusal::internal(message, error),
    }
}

fn not_prepared(failure: &PrepareFailure) -> Refusal {
    match failure {
        PrepareFailure::Container(failure) => Refusal::new(
            Code::SessionPoolContainerFailed,
            failure.describe(&failure.cause.to_string()),
        )
        .target("properties.customContainerTemplate.containers[0]"),
        PrepareFailure::Host { message } => {
            Refusal::new(Code::SessionPoolGoldenFailed, message.clone())
        }
        PrepareFailure::Closing => closing("The appliance is stopping"),
    }
}

fn closing(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::SessionPoolClosing, message).retry_after(Duration::from_secs(1))
}
