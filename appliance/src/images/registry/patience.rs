//! What may pass by itself is tried again, later and later.

use std::time::Duration;

use crate::images::error::ImageError;

/// Why a request gave nothing.
#[derive(Debug)]
pub enum Trouble {
    /// May be over soon: a broken connection, an overloaded registry.
    Passing {
        error: ImageError,
        /// When the registry wants to be asked again.
        after: Option<Duration>,
    },
    /// The part of a blob that is here does not go on; without it, it may.
    FromTheStart,
    /// Would be the same again.
    Lasting(ImageError),
}

impl Trouble {
    pub fn passing(message: String) -> Self {
        Self::Passing {
            error: ImageError::unreachable(message),
            after: None,
        }
    }

    pub fn into_error(self) -> ImageError {
        match self {
            Self::Passing { error, .. } | Self::Lasting(error) => error,
            Self::FromTheStart => {
                ImageError::corrupt("The registry has less of a layer than its manifest says")
            }
        }
    }
}

impl From<ImageError> for Trouble {
    /// No connection may be there the next time; all else is the same again.
    fn from(error: ImageError) -> Self {
        if error.code == crate::images::ImageErrorCode::ImageRegistryUnreachable {
            Self::Passing { error, after: None }
        } else {
            Self::Lasting(error)
        }
    }
}

/// How often and how long.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// In a row, without a single byte more than before.
    pub attempts: u32,
    pub first_wait: Duration,
    pub longest_wait: Duration,
}

impl Default for Patience {
    /// Waits 0.5, 1, 2 and 4 seconds: a registry that restarts is back by then.
    fn default() -> Self {
        Self {
            attempts: 5,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(10),
        }
    }
}

impl Patience {
    /// After so many failures in a row; `None` when it is enough.
    pub fn wait(&self, failures: u32, asked: Option<Duration>) -> Option<Duration> {
        if failures >= self.attempts {
            return None;
        }
        let doubled = self
            .first_wait
            .saturating_mul(1 << failures.saturating_sub(1).min(16));
        Some(
            asked
                .unwrap_or_default()
                .max(doubled.min(self.longest_wait)),
        )
    }
}

/// A question that is put to one place after the other; to the last one with patience.
pub struct Asking<'a, T> {
    pub place: &'a T,
    others: std::slice::Iter<'a, T>,
    failures: u32,
    patience: Patience,
}

impl<'a, T> Asking<'a, T> {
    pub fn new(places: &'a [T], patience: Patience) -> Result<Self, ImageError> {
        let mut others = places.iter();
        let place = others.next();
        let place = place.ok_or_else(|| ImageError::not_found("There is no registry to ask"))?;
        Ok(Self {
            place,
            others,
            failures: 0,
            patience,
        })
    }

    /// Waits if that is all that can be done. An error: this was the last chance.
    pub async fn failed(&mut self, trouble: Trouble) -> Result<(), ImageError> {
        self.failures += 1;
        if let Some(next) = self.others.next() {
            tracing::info!("asking elsewhere: {}", trouble.into_error());
            (self.place, self.failures) = (next, 0);
            return Ok(());
        }
        let Trouble::Passing { error, after } = trouble else {
            return Err(trouble.into_error());
        };
        let Some(wait) = self.patience.wait(self.failures, after) else {
            return Err(error);
        };
        tracing::info!(attempt = self.failures, "trying again: {error}");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Something has come of it: what fails now is new.
    pub fn progressed(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_end() {
        let patience = Patience::default();
        let waits: Vec<_> = (1..=5)
            .map(|failures| patience.wait(failures, None))
            .collect();
        let millis = |wait: u64| Some(Duration::from_millis(wait));
        assert_eq!(waits[..4], [500, 1000, 2000, 4000].map(millis));
        assert_eq!(waits[4], None);
        assert_eq!(patience.wait(1, Some(Duration::from_secs(7))), millis(7000));
        let endless = Patience {
            attempts: u32::MAX,
            ..patience
        };
        assert_eq!(endless.wait(90, None), millis(10_000));
    }

    #[tokio::test(start_paused = true)]
    async fn last_place_is_asked_again_and_the_others_once() {
        let mut asking = Asking::new(&["mirror", "origin"], Patience::default()).unwrap();
        let mut asked = Vec::new();
        let error = loop {
            asked.push(*asking.place);
            if let Err(error) = asking.failed(Trouble::passing("busy".into())).await {
                break error;
            }
        };
        assert_eq!(error.message, "busy");
        assert_eq!(
            asked,
            ["mirror", "origin", "origin", "origin", "origin", "origin"]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn lasting_trouble_ends_the_last_place_at_once() {
        let mut asking = Asking::new(&["mirror", "origin"], Patience::default()).unwrap();
        let gone = || Trouble::from(ImageError::not_found("gone"));
        asking.failed(gone()).await.unwrap();
        assert_eq!(asking.failed(gone()).await.unwrap_err().message, "gone");
    }
}
