//! An input as a series of choices: what a target that does things one after the other makes of bytes. Any bytes are an input, and a small
//! change of them is a small change of what is done. When there are no more bytes, every choice is the first one.

/// The bytes that are left.
#[derive(Debug, Clone)]
pub struct Choices<'a> {
    rest: &'a [u8],
}

impl<'a> Choices<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let taken = self.bytes(N);
        out[..taken.len()].copy_from_slice(taken);
        out
    }

    pub fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// As many bytes as there are, at most `count`.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// A number below `limit`, which is not zero.
    pub fn below(&mut self, limit: usize) -> usize {
        let number = if limit <= 1 << 8 {
            self.byte().into()
        } else {
            self.u32() as usize
        };
        number % limit
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// One of `likely`, or a little more or less than that, or any number at all.
    pub fn number(&mut self, likely: &[u64]) -> u64 {
        const NEAR: [u64; 8] = [0, 0, 0, 0, 0, 1, u64::MAX, 16];
        match self.byte() {
            0xf0.. => self.u64(),
            power @ 0xe8.. => 1 << self.below(64) >> (power & 1),
            small @ 0xd8.. => u64::from(small - 0xd8),
            index => {
                let near = NEAR[usize::from(index % 8)];
                likely[usize::from(index / 8) % likely.len()].wrapping_add(near)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_without_bytes_are_the_first_ones() {
        let mut choices = Choices::new(&[]);
        assert_eq!(
            (choices.u64(), choices.below(7), choices.flag()),
            (0, 0, false)
        );
        assert_eq!(choices.number(&[9, 8]), 9);
        assert!(choices.bytes(10).is_empty());
    }

    #[test]
    fn number_that_is_cut_short_has_zeros_above() {
        let mut choices = Choices::new(&[1, 2]);
        assert_eq!(choices.u32(), 0x0201);
        assert!(choices.is_empty());
    }
}
