//! Bytes that anybody can check: byte `n` is `n % 251`.
//!
//! 251 is prime, so a block that is lost, doubled or moved by any power of two shows at once.

use bytes::Bytes;

const MODULUS: u8 = 251;
/// A multiple of the modulus, so that blocks follow each other without a seam.
pub const BLOCK_BYTES: usize = MODULUS as usize * 256;

pub fn block() -> Bytes {
    (0..MODULUS).cycle().take(BLOCK_BYTES).collect()
}
