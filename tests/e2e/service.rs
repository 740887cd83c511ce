//! The unit that we ship, under systemd: what `systemctl` does to sessions is what the unit's comments say.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use e2e::appliance::free_address;
use e2e::client::empty;
use e2e::service::{ServiceHost, install_binary};
use e2e::{Client, artifacts};
use hyper::Method;
use hyper::header::AUTHORIZATION;
use serde_json::Value;

e2e::tests! {
    Own: [
        unit_serves_and_sessions_outlive_an_upgrade_a_crash_and_a_stop_but_not_cabana_stop,
    ];
}

const SERVICE: &str = "cabana.service";
const POOL: &str =
    "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/default/sessionPools/shop";
/// Half a CPU, as the pool says.
const SHARE: &str = "50000 100000";
/// From a start until it serves, on an emulated processor.
const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

/// The service, and how to ask for the one session.
struct Service {
    host: ServiceHost,
    address: std::net::SocketAddr,
    token: String,
}

fn unit_serves_and_sessions_outlive_an_upgrade_a_crash_and_a_stop_but_not_cabana_stop() {
    let service = Service::begin();
    let session = service.boot_id();
    let worker = service.workers();
    assert_eq!(worker.values().collect::<Vec<_>>(), [SHARE], "{worker:?}");

    let weight = ServiceHost::cgroup(SERVICE).join("warden/cpu.weight");
    assert_eq!(fs::read_to_string(&weight).unwrap().trim(), "10000");

    install_binary(&service.host.path("/"));
    service.systemctl(&["restart"]);
    service.assert_kept(&session, &worker, "restart");

    service.systemctl(&["kill", "--kill-whom=main", "--signal=KILL"]);
    service.wait_until("it is started again", || {
        service.property("NRestarts") == "1"
    });
    service.assert_kept(&session, &worker, "crash");

    service.systemctl(&["stop"]);
    assert_eq!(service.property("ActiveState"), "inactive");
    let left = service.workers();
    assert!(left.keys().eq(worker.keys()), "{left:?}, before {worker:?}");
    service.systemctl(&["start"]);
    service.assert_kept(&session, &worker, "stop and start");

    service.host.ok(&["cabana", "stop"]);
    service.wait_until("the service has ended", || {
        service.property("ActiveState") == "inactive"
    });
    // It ended as asked, so that systemd does not start it again.
    assert_eq!(service.property("Result"), "success");
    assert!(service.workers().is_empty(), "{}", service.host.journal());

    service.systemctl(&["start"]);
    assert_ne!(service.boot_id(), session);
    service.systemctl(&["stop"]);
    let said = service.host.ok(&["cabana", "stop"]);
    assert!(said.contains("1 worker"), "{said}");
    assert!(service.workers().is_empty(), "{}", service.host.journal());
}

impl Service {
    fn begin() -> Self {
        let address = free_address();
        let config = format!("listen = \"{address}\"\nspare_workers = 0\n");
        let host = ServiceHost::boot(&config);
        fs::copy(artifacts::demo_image(), host.path("/demo.tar")).unwrap();
        let mut service = Self {
            host,
            address,
            token: String::new(),
        };
        service.systemctl(&["start"]);
        service.wait_until_served();
        let flags = "sessionpool create --name shop --image oci-archive:/demo.tar --target-port 8080 --max-sessions 2 \
                     --ready-sessions 0 --cpu 0.5 --memory 0.5Gi";
        let create: Vec<&str> = ["cabana"].into_iter().chain(flags.split(' ')).collect();
        let create: Vec<&str> = create.into_iter().filter(|word| !word.is_empty()).collect();
        service.host.ok(&create);
        let token = ["cabana", "token", "create", "--pool", "shop", "--ttl", "1h"];
        service.token = service.host.ok(&token).trim().to_owned();
        service
    }

    fn systemctl(&self, arguments: &[&str]) {
        self.host
            .ok(&[&["systemctl"], arguments, &[SERVICE]].concat());
    }

    fn property(&self, name: &str) -> String {
        let shown = ["systemctl", "show", "--value", "-p", name, SERVICE];
        self.host.ok(&shown).trim().to_owned()
    }

    #[track_caller]
    fn wait_until(&self, what: &str, holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(
                begun.elapsed() < LIMIT,
                "waited in vain until {what}\n{}",
                self.host.journal()
            );
            thread::sleep(PAUSE);
        }
    }

    #[track_caller]
    fn wait_until_served(&self) {
        self.wait_until("the appliance answers", || {
            self.host.run(&["cabana", "image", "ls"]).code == Some(0)
        });
    }

    /// Which guest the session is.
    fn boot_id(&self) -> String {
        self.wait_until_served();
        let client = Client::new(self.address, &self.host.path("/var/lib/cabana/tls/ca.pem"));
        let target = format!("{POOL}/id?identifier=user-1");
        let bearer = format!("Bearer {}", self.token);
        let request = client.request(Method::GET, &target);
        let request = request.header(AUTHORIZATION, bearer).body(empty()).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let answer: Value = runtime.block_on(client.send(request)).json();
        answer["bootId"].as_str().unwrap().to_owned()
    }

    /// The cgroups of workers that there are, and the share of the CPU that each has.
    fn workers(&self) -> BTreeMap<String, String> {
        let folder = ServiceHost::cgroup(SERVICE);
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let processes = fs::read_to_string(entry.path().join("cgroup.procs")).ok()?;
                let is_worker = name.len() == 32 && !processes.is_empty();
                let share = fs::read_to_string(entry.path().join("cpu.max")).unwrap_or_default();
                is_worker.then(|| (name, share.trim().to_owned()))
            })
            .collect()
    }

    #[track_caller]
    fn assert_kept(&self, session: &str, worker: &BTreeMap<String, String>, after: &str) {
        let (now, workers) = (self.boot_id(), self.workers());
        let journal = self.host.journal();
        assert_eq!(now, session, "after {after}\n{journal}");
        assert_eq!(&workers, worker, "after {after}\n{journal}");
    }
}
