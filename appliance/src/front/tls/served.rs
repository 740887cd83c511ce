//! What the listener is given: the right certificate for each handshake, and what people are told of them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};

use super::acme::Acme;
use super::facts::{Facts, Reminder};
use super::files::Files;
use super::{CHALLENGE_PROTOCOL, Challenges, Clock, TlsError, own};
use crate::config::{AcmeChallenge, TlsFiles, TlsSource};

/// HTTP/2 first: that is the order of preference.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// Our own ends after a year; a day sooner or later does not matter.
const OWN_CHECK: Duration = Duration::from_secs(24 * 3600);
/// Two calls of `stat`. Who has exchanged a certificate does not wait longer to see it.
const FILES_CHECK: Duration = Duration::from_secs(10);
/// How often a certificate whose end is near is told of.
const REMIND: Duration = Duration::from_secs(24 * 3600);

/// Where the certificate comes from that is served if no other is for the name.
#[derive(Debug)]
enum Base {
    Own {
        dir: PathBuf,
        names: Vec<String>,
        authority: String,
    },
    Files(Files),
}

/// The certificates that are served, exchangeable while connections are open.
pub struct ServedCertificate {
    base: Base,
    current: RwLock<Arc<CertifiedKey>>,
    acme: Option<Arc<Acme>>,
    clock: Clock,
    reminder: Mutex<Reminder>,
}

/// Why there is no other certificate now.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    #[error("The certificate is not of an ACME server: {0}")]
    NotAcme(&'static str),
    #[error("{0}")]
    Failed(String),
}

impl ServedCertificate {
    /// What the configuration wants; `dir` is where the appliance keeps its own. Blocks.
    pub fn open(
        source: &TlsSource,
        dir: &Path,
        names: Vec<String>,
        clock: Clock,
    ) -> Result<Arc<Self>, TlsError> {
        let acme = match source {
            TlsSource::Acme(settings) => Some(Acme::open(settings, dir, clock.clone())?),
            TlsSource::Own | TlsSource::Files(_) => None,
        };
        let (base, current) = match source {
            TlsSource::Files(TlsFiles { certificate, key }) => {
                let files = Files::new(certificate, key);
                let current = files.load()?;
                (Base::Files(files), current)
            }
            TlsSource::Own | TlsSource::Acme(_) => {
                let current = own::ensure(dir, &names, clock.now())?;
                let base = Base::Own {
                    dir: dir.to_owned(),
                    names,
                    authority: own::authority(dir)?,
                };
                (base, current)
            }
        };
        Ok(Arc::new(Self {
            base,
            current: RwLock::new(current),
            acme,
            clock,
            reminder: Mutex::default(),
        }))
    }

    /// One of our own CA: uses what is in `dir`, or makes it. Blocks.
    #[cfg(test)]
    pub fn prepare(dir: &Path, names: Vec<String>) -> Result<Arc<Self>, TlsError> {
        Self::open(&TlsSource::Own, dir, names, Clock::of_the_host())
    }

    /// The operator's. Blocks.
    #[cfg(test)]
    pub fn of_files(certificate: &Path, key: &Path) -> Result<Arc<Self>, TlsError> {
        let files = TlsFiles {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        };
        let unused = Path::new("/nonexistent");
        let clock = Clock::of_the_host();
        Self::open(&TlsSource::Files(files), unused, Vec::new(), clock)
    }

    /// Sees to it that what is served is good, for as long as it is polled.
    pub async fn keep(self: Arc<Self>) {
        let base = async {
            let mut checks = tokio::time::interval(self.check_every());
            loop {
                checks.tick().await;
                let this = Arc::clone(&self);
                match tokio::task::spawn_blocking(move || this.renew_base()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::error!(
                            error = &error as &dyn std::error::Error,
                            "cannot exchange the certificate; the old one is served"
                        );
                    }
                    Err(error) => {
                        tracing::error!(%error, "the renewal of the certificate was lost")
                    }
                }
                self.remind();
            }
        };
        match &self.acme {
            Some(acme) => tokio::join!(base, acme.keep()).0,
            None => base.await,
        }
    }

    fn check_every(&self) -> Duration {
        match self.base {
            Base::Own { .. } => OWN_CHECK,
            Base::Files(_) => FILES_CHECK,
        }
    }

    /// Exchanges the certificate if its end is near, or if its files have changed. If that fails, the one that is served
    /// stays. Blocks.
    pub(super) fn renew_base(&self) -> Result<(), TlsError> {
        let before = self.base();
        let certificate = match &self.base {
            Base::Own { dir, names, .. } => own::ensure(dir, names, self.clock.now())?,
            Base::Files(files) if files.have_changed() => files.load()?,
            Base::Files(_) => return Ok(()),
        };
        if certificate.cert != before.cert {
            tracing::info!("the certificate was exchanged");
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = certificate;
        Ok(())
    }

    /// Says once a day what must not be forgotten.
    fn remind(&self) {
        let now = self.clock.now();
        let mut warnings = self
            .certificates()
            .into_iter()
            .filter_map(|(source, facts)| Some((source, facts?.warning(now)?)))
            .peekable();
        let mut reminder = self.reminder.lock().unwrap_or_else(PoisonError::into_inner);
        if warnings.peek().is_none() || !reminder.is_due(now, REMIND) {
            return;
        }
        for (source, warning) in warnings {
            tracing::warn!(source, "the certificate must be exchanged: {warning}");
        }
    }

    /// Asks the ACME server now.
    pub async fn renew_now(&self) -> Result<(), RenewError> {
        let Some(acme) = &self.acme else {
            return Err(RenewError::NotAcme(match self.base {
                Base::Own { .. } => "the appliance makes it, and the next one in time",
                Base::Files(_) => "it is exchanged when its files are",
            }));
        };
        // On a task of its own: a caller that hangs up does not leave half an order behind.
        let acme = Arc::clone(acme);
        let attempt = tokio::spawn(async move { acme.attempt().await }).await;
        let attempt = attempt.map_err(|error| RenewError::Failed(error.to_string()))?;
        attempt.map_err(RenewError::Failed)
    }

    /// What clients trust, in PEM, if the appliance has made it.
    pub fn authority(&self) -> Option<&str> {
        match &self.base {
            Base::Own { authority, .. } => Some(authority),
            Base::Files(_) => None,
        }
    }

    /// Challenges that are answered without TLS.
    pub fn challenges(&self) -> Option<Arc<Challenges>> {
        self.acme.as_ref().map(|acme| Arc::clone(&acme.challenges))
    }

    /// What is served, for people.
    pub fn report(&self) -> Value {
        let now = self.clock.now();
        let certificates: Vec<_> = self
            .certificates()
            .into_iter()
            .filter_map(|(source, facts)| Some(facts?.json(source, now)))
            .collect();
        json!({
            "source": match (&self.acme, &self.base) {
                (Some(_), _) => "acme",
                (None, base) => base.name(),
            },
            "certificates": certificates,
            "acme": self.acme.as_ref().map(|acme| acme.report()),
        })
    }

    /// Those that are served, the one for the names that matter most first.
    fn certificates(&self) -> Vec<(&'static str, Option<Facts>)> {
        let of_acme = self.acme.as_ref().and_then(|acme| acme.facts());
        let base = Facts::of(&self.base()).ok();
        let of_acme = of_acme.map(|facts| ("acme", Some(facts)));
        of_acme
            .into_iter()
            .chain([(self.base.name(), base)])
            .collect()
    }

    pub(super) fn base(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The configuration of the listener.
    pub fn server_config(self: &Arc<Self>) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|source| TlsError::Protocol { source })?;
        let mut config = builder
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        let acme = self.acme.as_ref().map(|acme| acme.settings.challenge);
        if acme == Some(AcmeChallenge::TlsAlpn01) {
            config.alpn_protocols.push(CHALLENGE_PROTOCOL.to_vec());
        }
        Ok(config)
    }
}

impl Base {
    fn name(&self) -> &'static str {
        match self {
            Self::Own { .. } => "own",
            Self::Files(_) => "files",
        }
    }
}

impl std::fmt::Debug for ServedCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServedCertificate")
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

/// Whether it is the ACME server that looks (RFC 8737 §3): it offers this protocol and no other.
fn is_challenge(hello: &ClientHello<'_>) -> bool {
    let offered = hello.alpn().map(|mut offered| {
        let first = offered.next();
        first == Some(CHALLENGE_PROTOCOL) && offered.next().is_none()
    });
    offered.unwrap_or(false)
}

impl ResolvesServerCert for ServedCertificate {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let Some(acme) = &self.acme {
            let name = hello.server_name();
            if is_challenge(&hello) {
                return acme.challenges.certificate(name?);
            }
            if let Some(certificate) = name.and_then(|name| acme.certificate(name)) {
                return Some(certificate);
            }
        }
        Some(self.base())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::facts::tests::issued;
    use super::super::testing::{BEGIN, simulated};
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    async fn keep_for(serving: &Arc<ServedCertificate>, time: Duration) {
        let _ = tokio::time::timeout(time, Arc::clone(serving).keep()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn own_certificate_is_exchanged_while_it_is_served_and_before_its_end_is_warned_of() {
        let dir = tempfile::tempdir().unwrap();
        let names = vec!["localhost".to_owned()];
        let serving =
            ServedCertificate::open(&TlsSource::Own, dir.path(), names, simulated()).unwrap();
        let first = serving.base();
        let authority = serving.authority().unwrap().to_owned();
        keep_for(&serving, 366 * DAY).await;
        assert_eq!(serving.base().cert, first.cert);
        let told = serving.report();
        assert_eq!(told["source"], "own");
        assert_eq!(told["certificates"][0]["warning"], Value::Null);
        keep_for(&serving, 2 * DAY).await;
        assert_ne!(serving.base().cert, first.cert);
        assert_eq!(serving.authority().unwrap(), authority);
    }

    /// Counts the warnings of this thread.
    struct Warnings(Arc<AtomicUsize>);

    impl tracing::Subscriber for Warnings {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() == tracing::Level::WARN
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            if event.metadata().target().ends_with("tls::served") {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }

    #[tokio::test(start_paused = true)]
    async fn end_of_a_certificate_of_files_is_warned_of_once_a_day_in_its_last_two_weeks() {
        let dir = tempfile::tempdir().unwrap();
        let [certificate, key] = ["cert.pem", "key.pem"].map(|name| dir.path().join(name));
        let (chain, secret) = issued(&["a.example"], BEGIN, 90);
        std::fs::write(&certificate, chain).unwrap();
        std::fs::write(&key, secret).unwrap();
        let source = TlsSource::Files(TlsFiles { certificate, key });
        let serving =
            ServedCertificate::open(&source, dir.path(), Vec::new(), simulated()).unwrap();
        let count = Arc::<AtomicUsize>::default();
        let _counting = tracing::subscriber::set_default(Warnings(Arc::clone(&count)));
        // Looked at once a day, as the loop of files would every ten seconds.
        for _ in 0..76 {
            serving.remind();
            tokio::time::advance(DAY).await;
        }
        assert_eq!(count.load(Ordering::Relaxed), 0);
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..3 {
            serving.remind();
            serving.remind();
            tokio::time::advance(DAY).await;
        }
        assert_eq!(count.load(Ordering::Relaxed), 3);
        let told = serving.report();
        assert_eq!(told["source"], "files");
        let warning = told["certificates"][0]["warning"].as_str().unwrap();
        assert!(warning.contains("in 10 days"), "{warning}");
        assert_eq!(serving.authority(), None);
    }
}
