//! One target, and the loop that tries inputs on it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::coverage::Seen;
use crate::found::{self, Found};
use crate::mutate::mutate;
use crate::random::Random;

/// The longest input, unless a target says something else.
const MAX_BYTES: usize = 4096;
/// The longest input that begins from nothing.
const FRESH_BYTES: usize = 512;

/// What is tried, and what its inputs are made of.
pub struct Target {
    name: &'static str,
    corpus: Option<PathBuf>,
    seeds: Vec<Vec<u8>>,
    words: Vec<&'static str>,
    max_bytes: usize,
}

impl Target {
    /// Inputs are series of bytes without any meaning to begin with. They are what [`crate::Choices`] are made of.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            corpus: None,
            seeds: Vec::new(),
            words: Vec::new(),
            max_bytes: MAX_BYTES,
        }
    }

    /// Inputs to begin with: the files of a folder.
    pub fn corpus(mut self, folder: impl Into<PathBuf>) -> Self {
        self.corpus = Some(folder.into());
        self
    }

    /// Inputs to begin with.
    pub fn seeds(mut self, seeds: impl IntoIterator<Item = Vec<u8>>) -> Self {
        self.seeds.extend(seeds);
        self
    }

    /// Words that mean something in an input.
    pub fn words(mut self, words: &[&'static str]) -> Self {
        self.words.extend(words);
        self
    }

    pub fn max_bytes(mut self, max_bytes: usize) -> Self {
        self.max_bytes = max_bytes;
        self
    }

    /// Tries inputs until it is time to stop: `inputs`, if no time is said. `try_one` answers whether its input was taken; some must be, and
    /// some not, or the changes are worth nothing.
    pub fn run(&self, inputs: u64, mut try_one: impl FnMut(&[u8]) -> bool) {
        if let Some(path) = std::env::var_os("CABANA_FUZZ_INPUT") {
            let input = std::fs::read(&path).expect("CABANA_FUZZ_INPUT is a file");
            let taken = try_one(&input);
            eprintln!("{}: taken: {taken}", self.name);
            return;
        }
        let root = std::env::var_os("CABANA_FUZZ_FOUND");
        let found = root.map(|root| Found::open(Path::new(&root), self.name));
        let mut run = Run::new(found.as_ref());
        for input in self.beginning(found.as_ref()) {
            run.one(input, None, &mut try_one);
        }
        let first = number("CABANA_FUZZ_SEED").unwrap_or(1);
        let duration = number("CABANA_FUZZ_SECONDS").map(Duration::from_secs);
        for seed in first.. {
            let done = match duration {
                Some(duration) => run.started.elapsed() >= duration,
                None => seed - first >= inputs,
            };
            if done {
                break;
            }
            let input = self.input(&run.pool, &mut Random::new(seed));
            run.one(input, Some(seed), &mut try_one);
        }
        eprintln!("{}: {}", self.name, run.summary());
        let [refused, taken] = run.counts;
        assert!(
            refused > 0 && taken > 0,
            "the changes are neither all fatal nor all harmless: {refused} refused, {taken} taken"
        );
        self.keep(run, &mut try_one);
    }

    /// All there is at hand, before anything is changed.
    fn beginning(&self, found: Option<&Found>) -> Vec<Vec<u8>> {
        let mut inputs = self.seeds.clone();
        let folders = self.corpus.iter().cloned().chain(found.map(Found::corpus));
        for folder in folders {
            inputs.extend(found::read(&folder).into_iter().map(|(_, bytes)| bytes));
        }
        inputs
    }

    fn input(&self, pool: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
        if pool.is_empty() {
            let count = random.below(self.max_bytes.min(FRESH_BYTES)) + 1;
            return random.bytes(count);
        }
        // What was found last is what is most likely to lead on.
        let newest = if random.below(4) == 0 { 16 } else { pool.len() };
        let mut input = pool[pool.len() - 1 - random.below(newest.min(pool.len()))].clone();
        let other = random.pick(pool);
        mutate(&mut input, other, &self.words, self.max_bytes, random);
        input
    }

    /// Writes the smallest inputs that together reach all that was reached.
    fn keep(&self, run: Run<'_>, try_one: &mut impl FnMut(&[u8]) -> bool) {
        let Some(found) = run.found.filter(|_| run.seen.reached().1 > 0) else {
            return;
        };
        found::keep(&found.corpus(), &run.pool);
        let corpus = self.corpus.as_deref();
        let Some(folder) = corpus.filter(|_| std::env::var_os("CABANA_FUZZ_KEEP").is_some()) else {
            return;
        };
        // What was there first stays, by itself; of the others, the shorter ones first.
        let mut seen = Seen::default();
        let mut pool = run.pool;
        pool.sort_by_key(Vec::len);
        let there = found::read(folder).into_iter().map(|(_, bytes)| bytes);
        for input in self.seeds.iter().cloned().chain(there) {
            Seen::begin();
            try_one(&input);
            seen.is_new(false);
        }
        pool.retain(|input| {
            Seen::begin();
            try_one(input);
            seen.is_new(false)
        });
        eprintln!("{}: {} inputs more in the corpus", self.name, pool.len());
        found::keep(folder, &pool);
    }
}

/// A run of a target: what it has seen so far.
struct Run<'a> {
    found: Option<&'a Found>,
    pool: Vec<Vec<u8>>,
    seen: Seen,
    /// Refused and taken.
    counts: [u64; 2],
    slowest: Duration,
    started: Instant,
}

impl<'a> Run<'a> {
    fn new(found: Option<&'a Found>) -> Self {
        Self {
            found,
            pool: Vec::new(),
            seen: Seen::default(),
            counts: [0; 2],
            slowest: Duration::ZERO,
            started: Instant::now(),
        }
    }

    /// Tries one input, which came with the corpus if it has no seed.
    fn one(&mut self, input: Vec<u8>, seed: Option<u64>, try_one: &mut impl FnMut(&[u8]) -> bool) {
        if let Some(found) = self.found {
            found.trying(&input);
        }
        let blame = Blame {
            input: &input,
            seed,
            found: self.found,
        };
        Seen::begin();
        let started = Instant::now();
        let taken = try_one(&input);
        self.slowest = self.slowest.max(started.elapsed());
        let new = self.seen.is_new(true);
        std::mem::forget(blame);
        self.counts[usize::from(taken)] += 1;
        if new || seed.is_none() {
            self.pool.push(input);
        }
    }

    fn summary(&self) -> String {
        let [refused, taken] = self.counts;
        let seconds = self.started.elapsed().as_secs_f64();
        let (reached, of) = self.seen.reached();
        let guided = if of == 0 {
            String::new()
        } else {
            format!(
                ", {} worth keeping, {reached} of {of} counters",
                self.pool.len()
            )
        };
        #[allow(clippy::cast_precision_loss, reason = "for people")]
        let rate = (refused + taken) as f64 / seconds;
        format!(
            "{taken} taken, {refused} refused, in {seconds:.1} s, {rate:.0}/s, the slowest {:.0?}{guided}",
            self.slowest
        )
    }
}

/// Says which input it was, should trying it panic.
struct Blame<'a> {
    input: &'a [u8],
    seed: Option<u64>,
    found: Option<&'a Found>,
}

impl Drop for Blame<'_> {
    fn drop(&mut self) {
        match (self.found, self.seed) {
            (Some(found), _) => {
                let path = found.failed(self.input);
                eprintln!("to see this again: CABANA_FUZZ_INPUT={}", path.display());
            }
            (None, Some(seed)) => eprintln!("to see this again: CABANA_FUZZ_SEED={seed}"),
            (None, None) => eprintln!("an input of the corpus did it"),
        }
        eprintln!("the input: b\"{}\"", self.input.escape_ascii());
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_that_wants_a_word_and_a_number_is_found() {
        let fault = std::panic::catch_unwind(|| {
            let target = Target::new("fault")
                .seeds([b"length=12".to_vec()])
                .words(&["token"]);
            target.run(200_000, |input| {
                let text = String::from_utf8_lossy(input);
                assert!(!(text.contains("token") && text.contains("=4")));
                text.starts_with("length=")
            });
        });
        assert!(fault.is_err());
    }

    #[test]
    fn changes_that_are_all_fatal_are_a_failure() {
        let all = std::panic::catch_unwind(|| Target::new("fatal").run(10, |_| false));
        assert!(all.is_err());
    }
}
