//! A budget for log lines that a guest can trigger.
//!
//! Without it, a guest that writes a wrong register in a loop would fill the host's disk. Each
//! device has its own budget, so a noisy device cannot silence another.

/// Lines that one device may log during the life of a microVM.
const LINES: u32 = 16;

/// Counts down the lines that one device may still log.
#[derive(Debug)]
pub struct LogBudget {
    left: u32,
}

impl LogBudget {
    pub fn new() -> Self {
        Self { left: LINES }
    }

    /// Whether the caller may log a line now. The last permission comes with a final notice.
    pub fn take(&mut self, device: &str) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        if self.left == 0 {
            tracing::warn!(
                device,
                "guest keeps misusing the device, further lines are dropped"
            );
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_ends_and_stays_ended() {
        let mut budget = LogBudget::new();
        let granted = (0..1000).filter(|_| budget.take("test")).count();
        assert_eq!(granted, LINES as usize);
        assert!(!budget.take("test"));
    }
}
