//! The header in front of every vsock packet (virtio 1.2, section 5.10.6). Pure.
//!
//! The `virtio-vsock` crate is not used: it expects header and payload in one or two descriptors,
//! while the spec lets a driver cut a packet anywhere and Linux does for zero-copy sends.

/// Bytes of a header.
pub const HEADER_BYTES: usize = 44;
/// The host's address, from every guest.
pub const HOST_CID: u64 = 2;
/// The only socket type this device has.
pub const TYPE_STREAM: u16 = 1;

/// In a shutdown: the sender will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// In a shutdown: the sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// In a shutdown: both.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
}

impl Op {
    const ALL: [(u16, Op); 7] = [
        (1, Op::Request),
        (2, Op::Response),
        (3, Op::Reset),
        (4, Op::Shutdown),
        (5, Op::Data),
        (6, Op::CreditUpdate),
        (7, Op::CreditRequest),
    ];

    pub fn from_raw(raw: u16) -> Option<Op> {
        Op::ALL
            .iter()
            .find(|(number, _)| *number == raw)
            .map(|(_, op)| *op)
    }

    pub fn to_raw(self) -> u16 {
        Op::ALL
            .iter()
            .find(|(_, op)| *op == self)
            .map_or(0, |(number, _)| *number)
    }
}

/// A header, as numbers of this host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Header {
        Header {
            src_cid: u64::from_le_bytes(field(bytes, 0)),
            dst_cid: u64::from_le_bytes(field(bytes, 8)),
            src_port: u32::from_le_bytes(field(bytes, 16)),
            dst_port: u32::from_le_bytes(field(bytes, 20)),
            len: u32::from_le_bytes(field(bytes, 24)),
            kind: u16::from_le_bytes(field(bytes, 28)),
            op: u16::from_le_bytes(field(bytes, 30)),
            flags: u32::from_le_bytes(field(bytes, 32)),
            buf_alloc: u32::from_le_bytes(field(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(field(bytes, 40)),
        }
    }

    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.src_cid.to_le_bytes());
        put(8, &self.dst_cid.to_le_bytes());
        put(16, &self.src_port.to_le_bytes());
        put(20, &self.dst_port.to_le_bytes());
        put(24, &self.len.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &self.op.to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buf_alloc.to_le_bytes());
        put(40, &self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The reset that answers this packet when there is no connection to answer for it.
    pub fn reset(&self) -> Header {
        Header {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Op::Reset.to_raw(),
            ..Header::default()
        }
    }
}

fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_has_the_layout_of_the_spec() {
        let mut bytes = [0; HEADER_BYTES];
        (0..)
            .zip(&mut bytes)
            .for_each(|(value, byte)| *byte = value);
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.dst_port, 0x1716_1514);
        assert_eq!((header.kind, header.op), (0x1d1c, 0x1f1e));
        assert_eq!(header.fwd_cnt, 0x2b2a_2928);
        assert_eq!(header.to_bytes(), bytes);
    }

    #[test]
    fn every_operation_keeps_its_number_and_others_are_unknown() {
        for raw in 0..=u16::MAX {
            match Op::from_raw(raw) {
                Some(op) => assert_eq!(op.to_raw(), raw),
                None => assert!(raw == 0 || raw > 7),
            }
        }
    }

    #[test]
    fn reset_goes_back_where_the_packet_came_from() {
        let header = Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: 9,
            dst_port: 7,
            len: 5,
            ..Header::default()
        };
        let reset = header.reset();
        assert_eq!(
            (reset.src_cid, reset.dst_cid, reset.src_port, reset.dst_port),
            (2, 3, 7, 9)
        );
        assert_eq!((reset.op, reset.len), (Op::Reset.to_raw(), 0));
    }
}
