//! The certificates of the front door.

use serde_json::json;

use super::Admin;
use crate::arm::call::Reply;
use crate::front::refusal::{Code, Refusal};
use crate::front::tls::RenewError;

impl Admin {
    pub(super) fn tls_authority(&self) -> Result<Reply, Refusal> {
        let pem = self.certificate.authority().ok_or_else(|| {
            let message = "The appliance has no authority of its own: the certificate is of the files in [tls]";
            Refusal::new(Code::ResourceNotFound, message)
        })?;
        Ok(Reply::ok(json!({ "certificate": pem })))
    }

    pub(super) async fn renew_tls(&self) -> Result<Reply, Refusal> {
        match self.certificate.renew_now().await {
            Ok(()) => Ok(Reply::ok(self.certificate.report())),
            Err(error @ RenewError::NotAcme(_)) => Err(Refusal::new(
                Code::CertificateNotRenewable,
                error.to_string(),
            )),
            Err(error @ RenewError::Failed(_)) => {
                Err(Refusal::new(Code::CertificateNotIssued, error.to_string()))
            }
        }
    }
}
