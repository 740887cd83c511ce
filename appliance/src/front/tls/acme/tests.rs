//! The life of a certificate in simulated time, with an issuer that does as it is told. A real server is asked in
//! `native::acme`.

use std::collections::VecDeque;

use super::super::facts::tests::{issued, moment};
use super::super::testing::{BEGIN, simulated};
use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Counts what it is asked, and fails as often as it is told.
#[derive(Clone, Default)]
struct Ca(Arc<Mutex<Orders>>);

#[derive(Default)]
struct Orders {
    fail: VecDeque<bool>,
    at: Vec<Timestamp>,
}

struct Desk {
    ca: Ca,
    clock: Clock,
    names: Vec<String>,
}

impl Issuer for Desk {
    fn issue(&self, _: Arc<Challenges>) -> BoxFuture<'_, Result<Issued, String>> {
        Box::pin(async {
            let now = self.clock.now();
            let mut orders = self.ca.0.lock().unwrap();
            orders.at.push(now);
            if orders.fail.pop_front().unwrap_or(false) {
                return Err("refused".to_owned());
            }
            let names: Vec<_> = self.names.iter().map(String::as_str).collect();
            let (chain, key) = issued(&names, &now.to_string(), 90);
            Ok(Issued { chain, key })
        })
    }
}

impl Ca {
    fn fails(&self, times: usize) {
        let fail = std::iter::repeat_n(true, times);
        self.0.lock().unwrap().fail.extend(fail);
    }

    /// How long after the beginning it was asked.
    fn asked(&self) -> Vec<Duration> {
        let asked = self.0.lock().unwrap().at.clone();
        let since = asked
            .iter()
            .map(|at| at.duration_since(moment(BEGIN)))
            .map(|since| Duration::try_from(since).unwrap());
        since.collect()
    }
}

fn settings(domains: &[&str]) -> AcmeSettings {
    AcmeSettings {
        directory: "https://ca.example/".to_owned(),
        contacts: Vec::new(),
        domains: domains.iter().map(|name| (*name).to_owned()).collect(),
        challenge: AcmeChallenge::TlsAlpn01,
        ca_file: None,
        external_account: None,
    }
}

fn open(ca: &Ca, clock: &Clock, settings: &AcmeSettings, dir: &Path) -> Arc<Acme> {
    let desk = Desk {
        ca: ca.clone(),
        clock: clock.clone(),
        names: settings.domains.clone(),
    };
    let kept = Kept::open(dir).unwrap();
    Acme::with(settings, kept, clock.clone(), Box::new(desk)).unwrap()
}

async fn keep_for(acme: &Acme, time: Duration) {
    let _ = tokio::time::timeout(time, acme.keep()).await;
}

#[tokio::test(start_paused = true)]
async fn certificate_is_renewed_at_two_thirds_of_its_life_and_a_restart_asks_for_none() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, clock) = (Ca::default(), simulated());
    let wanted = settings(&["a.example"]);
    let acme = open(&ca, &clock, &wanted, dir.path());
    assert!(acme.certificate("a.example").is_none());
    keep_for(&acme, DAY).await;
    assert_eq!(ca.asked(), [Duration::ZERO]);
    let first = acme.facts().unwrap();
    assert!(acme.certificate("A.Example").is_some());
    assert!(acme.certificate("b.example").is_none());
    let acme = open(&ca, &clock, &wanted, dir.path());
    assert_eq!(acme.facts().unwrap(), first);
    keep_for(&acme, 58 * DAY).await;
    assert_eq!(ca.asked().len(), 1);
    keep_for(&acme, 5 * DAY).await;
    let asked = ca.asked();
    assert_eq!(asked.len(), 2);
    assert!(
        (60 * DAY..=63 * DAY + HOUR).contains(&asked[1]),
        "{asked:?}"
    );
    assert_ne!(acme.facts().unwrap(), first);
}

#[tokio::test(start_paused = true)]
async fn refused_renewal_keeps_the_old_certificate_and_is_tried_again_less_and_less_often() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, clock) = (Ca::default(), simulated());
    let acme = open(&ca, &clock, &settings(&["a.example"]), dir.path());
    acme.attempt().await.unwrap();
    let first = acme.facts().unwrap();
    ca.fails(4);
    keep_for(&acme, 70 * DAY).await;
    let asked = ca.asked();
    assert_eq!(asked.len(), 6, "{asked:?}");
    let pauses: Vec<_> = asked
        .windows(2)
        .skip(1)
        .map(|two| two[1] - two[0])
        .collect();
    for (pause, minutes) in pauses.iter().zip([5, 10, 20, 40]) {
        let said = Duration::from_secs(minutes * 60);
        let range = said * 3 / 4..=said * 5 / 4 + Duration::from_secs(1);
        assert!(range.contains(pause), "{pauses:?}");
    }
    assert_ne!(acme.facts().unwrap(), first);
    assert_eq!(acme.report()["failures"], 0);
    ca.fails(1);
    assert_eq!(acme.attempt().await.unwrap_err(), "refused");
    assert!(acme.certificate("a.example").is_some());
    assert_eq!(acme.report()["lastError"], "refused");
}

#[tokio::test(start_paused = true)]
async fn other_names_or_another_server_are_asked_for_at_once_and_the_old_certificate_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, clock) = (Ca::default(), simulated());
    let acme = open(&ca, &clock, &settings(&["a.example"]), dir.path());
    acme.attempt().await.unwrap();
    ca.fails(1);
    let more = settings(&["a.example", "b.example"]);
    let acme = open(&ca, &clock, &more, dir.path());
    keep_for(&acme, Duration::from_secs(1)).await;
    assert_eq!(ca.asked().len(), 2);
    assert!(acme.certificate("a.example").is_some());
    assert!(acme.certificate("b.example").is_none());
    keep_for(&acme, HOUR).await;
    assert!(acme.certificate("b.example").is_some());
    let other = AcmeSettings {
        directory: "https://other.example/".to_owned(),
        ..more
    };
    let acme = open(&ca, &clock, &other, dir.path());
    keep_for(&acme, HOUR).await;
    assert_eq!(ca.asked().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn certificate_that_is_not_for_what_was_asked_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, clock) = (Ca::default(), simulated());
    let wanted = settings(&["a.example", "b.example"]);
    let desk = Desk {
        ca,
        clock: clock.clone(),
        names: vec!["a.example".to_owned()],
    };
    let kept = Kept::open(dir.path()).unwrap();
    let acme = Acme::with(&wanted, kept, clock, Box::new(desk)).unwrap();
    let error = acme.attempt().await.unwrap_err();
    assert!(error.contains("b.example"), "{error}");
    assert!(acme.certificate("a.example").is_none());
}
