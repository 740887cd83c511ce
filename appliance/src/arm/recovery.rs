//! What becomes of operations that had not ended when an earlier run did.
//!
//! The pools in the store say what was done. A deletion goes on; a change was either made, or is to be asked for again.

use std::sync::Arc;

use super::Arm;
use super::conditions::goal;
use super::properties::Address;
use crate::front::refusal::{Code, Refusal};
use crate::store::{OperationKind, OperationRecord};

impl Arm {
    /// Before any new operation is begun.
    pub async fn recover(self: &Arc<Self>) {
        for record in self.operations.unfinished() {
            let address = Address {
                subscription: record.subscription.clone(),
                resource_group: record.resource_group.clone(),
                name: record.pool.to_string(),
            };
            let made = self.pool(&address).ok();
            let OperationRecord {
                id,
                kind,
                goal: aim,
                ..
            } = record;
            match (kind, made) {
                (OperationKind::Delete, Some(pool)) => {
                    let ticket = self.operations.resume(id, kind, Arc::clone(&pool));
                    drop(self.start_delete(pool, ticket));
                }
                (OperationKind::Delete, None) => self.operations.close(id, None).await,
                (_, Some(pool)) if aim == Some(goal(&pool)) => {
                    self.operations.close(id, None).await;
                }
                (_, _) => {
                    tracing::warn!(operation = %id, pool = %record.pool, "interrupted by the end of an earlier run");
                    let failure = interrupted();
                    self.operations.close(id, Some(&failure)).await;
                }
            }
        }
    }
}

fn interrupted() -> Refusal {
    let message = "The appliance ended before this was done, and the pool is as it was before. Ask for it again";
    Refusal::new(Code::OperationInterrupted, message)
}
