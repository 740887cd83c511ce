//! `kill -9` of the appliance process, and of the warden above it, at every step of create, change, claim, stop and delete. What was
//! answered is still there, with its state. What was not is wholly there or not at all, and can be asked for again. The counts come
//! right and nothing is left.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use e2e::client::Answer;
use e2e::pool::{Counts, Pool};
use e2e::process::{self, Process};
use e2e::traces::Traces;
use e2e::{Session, TestAppliance};
use hyper::Method;
use rustix::process::Signal;

e2e::tests! {
    Own: [
        appliance_process_that_is_killed_at_a_beginning_loses_nothing_that_was_answered,
        warden_that_is_killed_at_a_beginning_loses_nothing_that_was_answered,
        // The order deals the two long ones to different labs.
        warden_that_is_killed_at_a_change_or_an_end_loses_nothing_that_was_answered,
        appliance_process_that_is_killed_at_a_change_or_an_end_loses_nothing_that_was_answered,
    ];
}

/// What a step may take to come, on an emulated processor.
const LIMIT: Duration = Duration::from_secs(60);
/// Claims and changes are over too soon to see their steps: these are killed at different times, so many of each.
const OFFSETS: u32 = 3;
/// About as long as they take on an emulated processor, with the client's part.
const CLAIM: Duration = Duration::from_millis(400);
const CHANGE: Duration = Duration::from_millis(150);
/// EX_SOFTWARE, for systemd to start it again.
const EXIT_INTERNAL: i32 = 70;
const NOTE: &str = "/files/note";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Appliance,
    Warden,
}

/// An appliance with a pool that is never touched, in which one session and one ready slot are.
struct Matrix {
    host: TestAppliance,
    victim: Victim,
    boot: String,
    pids: Vec<u32>,
}

fn appliance_process_that_is_killed_at_a_beginning_loses_nothing_that_was_answered() {
    Matrix::new(Victim::Appliance).while_something_is_made();
}

fn warden_that_is_killed_at_a_beginning_loses_nothing_that_was_answered() {
    Matrix::new(Victim::Warden).while_something_is_made();
}

fn appliance_process_that_is_killed_at_a_change_or_an_end_loses_nothing_that_was_answered() {
    Matrix::new(Victim::Appliance).while_something_changes_or_ends();
}

fn warden_that_is_killed_at_a_change_or_an_end_loses_nothing_that_was_answered() {
    Matrix::new(Victim::Warden).while_something_changes_or_ends();
}

/// Times below `longest` that look random, the same for the same seed (a generator of Numerical Recipes).
fn offsets(what: &str, longest: Duration) -> Vec<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = now.expect("it is after 1970").subsec_nanos();
    println!("{what} is killed at {OFFSETS} times, with the seed {seed}");
    let mut number = seed;
    let mut next = || {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        longest * (number >> 16) / (1 << 16)
    };
    (0..OFFSETS).map(|_| next()).collect()
}

/// The command that changes what the pool's sessions are made of.
fn update(value: &str) -> [&str; 6] {
    [
        "sessionpool",
        "update",
        "--name",
        "changed",
        "--env-vars",
        value,
    ]
}

/// The processes that have a guest, whoever has started them.
fn guests(host: &TestAppliance) -> Vec<u32> {
    let processes = host.processes().into_iter();
    let guests = processes.filter(Process::has_guest);
    let mut pids: Vec<u32> = guests.map(|process| process.pid).collect();
    pids.sort_unstable();
    pids
}

fn note(session: &Session) -> String {
    session.text(NOTE)
}

/// One request whose answer may not come.
fn ask(session: &Session<'_>, path: &str) -> Option<Answer> {
    session.try_call(Method::GET, path, "")
}

impl Matrix {
    fn new(victim: Victim) -> Self {
        let host = TestAppliance::start();
        let flags = ["--ready-sessions", "1", "--cooldown-period", "3600"];
        let pool = host.pool("kept").with(&flags).create();
        let session = pool.session("user-1");
        session.call(Method::PUT, NOTE, "written before");
        let boot = session.boot_id();
        pool.wait_for_counts(1, 1);
        let pids = guests(&host);
        Self {
            host,
            victim,
            boot,
            pids,
        }
    }

    fn while_something_is_made(mut self) {
        self.while_a_pool_is_made();
        self.while_a_session_is_made();
        self.while_ready_sessions_are_claimed();
        self.host.stop();
    }

    fn while_something_changes_or_ends(mut self) {
        self.while_a_pool_changes();
        self.while_a_session_stops();
        self.while_a_pool_is_deleted();
        self.host.stop();
    }

    fn pool(&self, name: &str) -> Pool<'_> {
        self.host.existing_pool(name)
    }

    /// Kills the victim as soon as `step` returns, while `work` is being done; answers what came of that.
    fn kill<T: Send>(&self, work: impl FnOnce() -> T + Send, step: impl FnOnce()) -> T {
        // Before, since looking for it takes longer than some steps.
        let appliance = self.host.appliance();
        thread::scope(|scope| {
            let working = scope.spawn(work);
            step();
            match self.victim {
                Victim::Appliance => appliance.kill(),
                Victim::Warden => self.host.signal(Signal::KILL),
            }
            working.join().expect("it ends without an answer")
        })
    }

    /// Waits until there is an appliance again, and asserts that the pool that nobody touched is as it was.
    fn come_back(&mut self, position: usize, what: &str) {
        match self.victim {
            Victim::Appliance => {
                let serves = |line: &str| line.contains("serving");
                if self.host.log().wait_for(position, LIMIT, serves).is_err() {
                    // Too often within a minute: then the warden leaves it to whoever has started it.
                    let status = self.host.wait();
                    assert_eq!(status.code(), Some(EXIT_INTERNAL), "{what}: {status}");
                    self.host.restart();
                }
            }
            Victim::Warden => {
                self.host.wait();
                self.host.restart();
            }
        }
        let kept = self.pool("kept");
        kept.wait_for_counts(1, 1);
        let session = kept.session("user-1");
        assert_eq!(session.boot_id(), self.boot, "{what}: another guest");
        assert_eq!(note(&session), "written before", "{what}");
        let now = guests(&self.host);
        let missing: Vec<_> = self.pids.iter().filter(|pid| !now.contains(pid)).collect();
        assert!(
            missing.is_empty(),
            "{what}: {missing:?} of {:?} are gone",
            self.pids
        );
    }

    /// Nothing but the pool that nobody touched.
    fn assert_only_kept(&self, what: &str) {
        let left: Vec<u32> = guests(&self.host);
        assert_eq!(
            left, self.pids,
            "{what}: not the workers that there should be"
        );
        let unfinished = self.host.traces().unfinished();
        assert_eq!(unfinished, [""; 0], "{what}");
    }

    fn new_guest(&self, before: &Traces) -> Process {
        process::appears(LIMIT, "a new guest", |process| {
            process.has_guest() && !before.has(process)
        })
    }

    fn while_a_pool_is_made(&mut self) {
        // A size of its own, so that it needs a golden of its own.
        let flags = ["--ephemeral-storage", "1100Mi"];
        type Step = fn(&Matrix, usize, &Traces);
        let steps: [(&str, Step); 2] = [
            ("a golden boots", |this, _, before| {
                this.new_guest(before);
            }),
            ("a golden is tried", |this, position, before| {
                this.host
                    .wait_for_line(position, LIMIT, "that a golden is held", |line| {
                        line.contains("Golden is held")
                    });
                this.new_guest(before);
            }),
        ];
        for (what, step) in steps {
            let (before, position) = (self.host.traces(), self.host.log().position());
            let made = self.kill(
                || self.host.pool("made").with(&flags).run(),
                || step(self, position, &before),
            );
            assert_ne!(made.code, Some(0), "{what}: {made:#?}");
            self.come_back(position, what);
            // It was not answered, and its golden was not there: so neither is the pool.
            assert_eq!(self.pool("made").properties(), None, "{what}");
            self.assert_only_kept(what);
        }
        let made = self.host.pool("made").with(&flags).create();
        assert_eq!(made.session("user-1").get("/").status, 200);
        made.delete();
        self.assert_only_kept("deleted");
    }

    /// The container listens late, so that there is time between its start and its session.
    fn while_a_session_is_made(&mut self) {
        let flags = ["--env-vars", "DEMO_DELAY_MS=2000"];
        let cold = self.host.pool("cold").with(&flags).create();
        let session = cold.session("user-2");
        let position = self.host.log().position();
        let answer = self.kill(
            || ask(&session, "/"),
            || {
                self.host
                    .wait_for_line(position, LIMIT, "that a guest is renewed", |line| {
                        line.contains("Guest is renewed")
                    });
            },
        );
        assert!(answer.is_none_or(|answer| answer.status >= 500));
        drop((session, cold));
        self.come_back(position, "a session is made");
        let cold = self.pool("cold");
        cold.wait_until("empty", |shown| {
            shown["sessionCounts"]["allocated"] == 0 && shown["sessionCounts"]["pending"] == 0
        });
        self.assert_only_kept("a session is made");

        // In the container when it happens; the session outlives it.
        let session = cold.session("user-2");
        let boot = session.boot_id();
        let position = self.host.log().position();
        let answer = self.kill(
            || ask(&session, "/slow?ms=3600000"),
            || {
                cold.wait_until("asked", |_| {
                    let look = cold.look("user-2").unwrap_or_default();
                    look["openRequests"].as_u64() == Some(1)
                });
            },
        );
        assert!(answer.is_none_or(|answer| answer.status >= 500));
        drop((session, cold));
        self.come_back(position, "a request is answered");
        let cold = self.pool("cold");
        assert_eq!(cold.session("user-2").boot_id(), boot);
        cold.wait_for_counts(0, 1);
        cold.delete();
        self.assert_only_kept("a request is answered");
    }

    fn while_ready_sessions_are_claimed(&mut self) {
        let flags = ["--ready-sessions", "1"];
        self.host.pool("claimed").with(&flags).create();
        for offset in offsets("a claim", CLAIM) {
            let claimed = self.pool("claimed");
            claimed.wait_for_counts(1, 0);
            let session = claimed.session("user-3");
            let position = self.host.log().position();
            // The time is the step here.
            let answer = self.kill(|| ask(&session, "/id"), || thread::sleep(offset));
            let answered = answer.filter(|answer| answer.status == 200);
            drop((session, claimed));
            self.come_back(position, "a session is claimed");
            let claimed = self.pool("claimed");
            let session = claimed.session("user-3");
            println!("{offset:?}: answered: {}", answered.is_some());
            if let Some(answered) = answered {
                assert_eq!(session.get("/id").json(), answered.json(), "{offset:?}");
            }
            assert_eq!(session.get("/").status, 200, "{offset:?}");
            claimed.wait_for_counts(1, 1);
            let call = "/.management/stopSession?api-version=2025-02-02-preview";
            assert_eq!(session.call(Method::POST, call, "").status, 200);
        }
        self.pool("claimed").delete();
        self.assert_only_kept("a session is claimed");
    }

    fn while_a_pool_changes(&mut self) {
        let flags = ["--ready-sessions", "1"];
        let changed = self.host.pool("changed").with(&flags).create();
        let boot = changed.session("user-4").boot_id();
        changed.wait_for_counts(1, 1);

        // It was answered, and what it asks for is on its way.
        let position = self.host.log().position();
        self.host.cli().ok(&update("DEMO_DELAY_MS=2000"));
        self.kill(
            || (),
            || {
                self.host
                    .wait_for_line(position, LIMIT, "that a guest is renewed", |line| {
                        line.contains("Guest is renewed")
                    });
            },
        );
        drop(changed);
        self.come_back(position, "a revision warms up");
        self.assert_changed(&boot, |env| env.contains("DEMO_DELAY_MS"));

        for (number, offset) in offsets("a change", CHANGE).into_iter().enumerate() {
            let position = self.host.log().position();
            let value = format!("NUMBER={number}");
            let arguments = update(&value);
            let ran = self.kill(|| self.host.cli().run(&arguments), || thread::sleep(offset));
            self.come_back(position, "a pool changes");
            let shown = self.pool("changed").properties().expect("it is there");
            let container = shown["customContainerTemplate"]["containers"][0].to_string();
            let is_new = container.contains(&format!("\"{number}\""));
            println!("{offset:?}: answered: {:?}, changed: {is_new}", ran.code);
            assert!(is_new || ran.code != Some(0), "what was answered is lost");
            self.assert_changed(&boot, |env| env.contains(&value) == is_new);
        }
        self.pool("changed").delete();
        self.assert_only_kept("a pool changes");
    }

    /// The pool serves what it says, and the session of its first revision lives on.
    fn assert_changed(&self, boot: &str, wanted: impl Fn(&str) -> bool) {
        let changed = self.pool("changed");
        changed.wait_until("moved over", |shown| {
            shown["templateUpdateStatus"]["desiredTemplate"].is_null()
        });
        changed.wait_for_counts(1, 1);
        assert_eq!(changed.session("user-4").boot_id(), boot);
        let session = changed.session("user-5");
        let env = session.get("/env").json();
        let env: Vec<String> = env
            .as_object()
            .expect("an object")
            .iter()
            .map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()))
            .collect();
        assert!(wanted(&env.join("\n")), "{env:?}");
        let call = "/.management/stopSession?api-version=2025-02-02-preview";
        assert_eq!(session.call(Method::POST, call, "").status, 200);
        changed.wait_for_counts(1, 1);
    }

    /// Its container does not hear its stop signal, so that the stop takes a while.
    fn deaf(&self, pool: &str, identifier: &str) {
        let answer = self
            .pool(pool)
            .session(identifier)
            .call(Method::POST, "/hang", "");
        assert_eq!(answer.status, 204, "{answer:#?}");
    }

    fn wait_for_end(&self, position: usize) {
        self.host
            .wait_for_line(position, LIMIT, "that a session ends", |line| {
                line.contains("session ends")
            });
    }

    fn while_a_session_stops(&mut self) {
        let stopped = self.host.pool("stopped").create();
        let session = stopped.session("user-6");
        let boot = session.boot_id();
        self.deaf("stopped", "user-6");
        let position = self.host.log().position();
        let path = "/.management/stopSession?api-version=2025-02-02-preview";
        let answer = self.kill(
            || session.try_call(Method::POST, path, ""),
            || self.wait_for_end(position),
        );
        assert!(answer.is_none_or(|answer| answer.status >= 500));
        drop((session, stopped));
        self.come_back(position, "a session stops");
        // It is gone, or still there and can be stopped again.
        let stopped = self.pool("stopped");
        let session = stopped.session("user-6");
        let again = session.call(Method::POST, path, "");
        println!("stopped again: {} {}", again.status, again.text());
        assert!(again.status == 200 || again.text().contains("SessionWithIdentifierNotFound"));
        stopped.wait_for(Counts::settled(0, 0));
        self.assert_only_kept("a session stops");
        assert_ne!(
            session.boot_id(),
            boot,
            "the guest that was stopped has answered"
        );
        stopped.delete();
    }

    fn while_a_pool_is_deleted(&mut self) {
        let flags = ["--ready-sessions", "1"];
        let deleted = self.host.pool("deleted").with(&flags).create();
        deleted.wait_for_counts(1, 0);
        self.deaf("deleted", "user-7");
        deleted.wait_for_counts(1, 1);
        drop(deleted);
        let position = self.host.log().position();
        let delete = ["sessionpool", "delete", "--name", "deleted"];
        let ran = self.kill(
            || self.host.cli().run(&delete),
            || self.wait_for_end(position),
        );
        assert_ne!(ran.code, Some(0), "{ran:#?}");
        self.come_back(position, "a pool is deleted");
        if self.pool("deleted").properties().is_some() {
            self.host.cli().ok(&delete);
        }
        self.assert_only_kept("a pool is deleted");
        self.host.pool("deleted").create().delete();
    }
}
