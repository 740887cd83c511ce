//! One order at an ACME server, from the account to the certificate (RFC 8555 §7).

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, ExternalAccountKey, Identifier, NewAccount,
    NewOrder, Order, OrderStatus, RetryPolicy,
};

use super::challenges::{Challenges, Proof};
use super::http::Client;
use super::kept::Kept;
use super::{Issued, Issuer};
use crate::config::{AcmeChallenge, AcmeSettings, ExternalAccount};
use crate::front::tls::TlsError;
use crate::front::tls::facts::plain;
use crate::pool::launcher::BoxFuture;

/// A server that looks from several places, or is busy, takes a while.
const PATIENCE: Duration = Duration::from_secs(120);
const FIRST_LOOK: Duration = Duration::from_millis(250);
/// RFC 8555 §6.7.
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
enum OrderError {
    #[error("Cannot speak with the ACME server: {0}")]
    Client(String),
    #[error("Cannot use the key of the external account: {0}")]
    ExternalAccount(String),
    #[error("Cannot open the account at the server")]
    Account(#[source] instant_acme::Error),
    #[error("The order failed")]
    Order(#[source] instant_acme::Error),
    #[error("The server does not offer {challenge} for {name}")]
    NotOffered {
        challenge: &'static str,
        name: String,
    },
    #[error("Cannot make the proof for {name}: {cause}")]
    Proof { name: String, cause: String },
    #[error("The server does not believe that {name} is here: {reason}")]
    Refused { name: String, reason: String },
    #[error("The server gave the order up")]
    GivenUp,
    #[error(transparent)]
    File(#[from] TlsError),
}

/// Whom certificates are asked of.
pub struct AcmeServer {
    pub settings: AcmeSettings,
    pub kept: Kept,
}

impl Issuer for AcmeServer {
    fn issue(&self, challenges: Arc<Challenges>) -> BoxFuture<'_, Result<Issued, String>> {
        Box::pin(async move {
            let outcome = match self.order(&challenges).await {
                Err(OrderError::Order(error)) if is_unknown(&error) => {
                    // The server has forgotten us, or was set up anew.
                    tracing::warn!("the ACME server does not know the account; making another");
                    match self.kept.forget_account() {
                        Ok(()) => self.order(&challenges).await,
                        Err(error) => Err(error.into()),
                    }
                }
                outcome => outcome,
            };
            outcome.map_err(|error| plain(&crate::exit::chain(&error)))
        })
    }
}

impl AcmeServer {
    async fn order(&self, challenges: &Arc<Challenges>) -> Result<Issued, OrderError> {
        let account = self.account().await?;
        let names = self.settings.domains.iter().cloned();
        let names: Vec<_> = names.map(Identifier::Dns).collect();
        let order = account.new_order(&NewOrder::new(&names)).await;
        let mut order = order.map_err(OrderError::Order)?;
        // Until the server has looked at all of them.
        let proofs = self.prove(&mut order, challenges).await?;
        let policy = RetryPolicy::new()
            .initial_delay(FIRST_LOOK)
            .timeout(PATIENCE);
        let ready = order.poll_ready(&policy).await;
        drop(proofs);
        if !matches!(ready, Ok(OrderStatus::Ready)) {
            return Err(match (why_invalid(&mut order).await, ready) {
                (Some(refused), _) => refused,
                (None, Err(error)) => OrderError::Order(error),
                (None, Ok(_)) => OrderError::GivenUp,
            });
        }
        let key = order.finalize().await.map_err(OrderError::Order)?;
        let chain = order.poll_certificate(&policy).await;
        let chain = chain.map_err(OrderError::Order)?;
        Ok(Issued { chain, key })
    }

    /// The one that is there, or a new one.
    async fn account(&self) -> Result<Account, OrderError> {
        let directory = &self.settings.directory;
        let client = Client::open(self.settings.ca_file.clone()).await;
        let client = Box::new(client.map_err(OrderError::Client)?);
        let builder = Account::builder_with_http(client);
        if let Some(credentials) = self.kept.account(directory)? {
            let account = builder.from_credentials(credentials).await;
            return account.map_err(OrderError::Account);
        }
        let contacts: Vec<_> = self.settings.contacts.iter().map(String::as_str).collect();
        let wanted = NewAccount {
            contact: &contacts,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let bound = match &self.settings.external_account {
            Some(account) => Some(external(account).await?),
            None => None,
        };
        let made = builder
            .create(&wanted, directory.clone(), bound.as_ref())
            .await;
        let (account, credentials) = made.map_err(OrderError::Account)?;
        self.kept.save_account(directory, &credentials)?;
        tracing::info!(directory, "an account was made at the ACME server");
        Ok(account)
    }

    /// Puts the proof for each name where the server looks for it, and tells it to look.
    async fn prove(
        &self,
        order: &mut Order,
        challenges: &Arc<Challenges>,
    ) -> Result<Vec<Proof>, OrderError> {
        let (kind, said) = match self.settings.challenge {
            AcmeChallenge::TlsAlpn01 => (ChallengeType::TlsAlpn01, "tls-alpn-01"),
            AcmeChallenge::Http01 { .. } => (ChallengeType::Http01, "http-01"),
        };
        let mut proofs = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(OrderError::Order)?;
            // Proven before, and not so long ago.
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let name = authorization.identifier().to_string();
            let challenge = authorization.challenge(kind.clone());
            let mut challenge = challenge.ok_or_else(|| OrderError::NotOffered {
                challenge: said,
                name: plain(&name),
            })?;
            let answer = challenge.key_authorization();
            let proof = match self.settings.challenge {
                AcmeChallenge::Http01 { .. } => {
                    challenges.answer_with(&challenge.token, answer.as_str())
                }
                AcmeChallenge::TlsAlpn01 => {
                    let shown = challenges.show(&name, answer.digest().as_ref());
                    shown.map_err(|cause| OrderError::Proof { name, cause })?
                }
            };
            proofs.push(proof);
            challenge.set_ready().await.map_err(OrderError::Order)?;
        }
        Ok(proofs)
    }
}

/// What the server has said about the name that it does not believe.
async fn why_invalid(order: &mut Order) -> Option<OrderError> {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else {
            continue;
        };
        let failed = state.challenges.iter().find_map(|it| it.error.as_ref());
        if let Some(problem) = failed {
            let reason = problem.detail.clone();
            return Some(OrderError::Refused {
                name: plain(&state.identifier().to_string()),
                reason: plain(&reason.unwrap_or_else(|| problem.to_string())),
            });
        }
    }
    None
}

async fn external(account: &ExternalAccount) -> Result<ExternalAccountKey, OrderError> {
    let path = account.key_file.display();
    let text = tokio::fs::read_to_string(&account.key_file).await;
    let text = text.map_err(|error| OrderError::ExternalAccount(format!("{path}: {error}")))?;
    let key = BASE64_URL_SAFE_NO_PAD
        .decode(text.trim().trim_end_matches('='))
        .map_err(|_| OrderError::ExternalAccount(format!("{path} does not hold base64url")))?;
    Ok(ExternalAccountKey::new(account.key_id.clone(), &key))
}

fn is_unknown(error: &instant_acme::Error) -> bool {
    matches!(error, instant_acme::Error::Api(problem) if problem.r#type.as_deref() == Some(NO_ACCOUNT))
}
