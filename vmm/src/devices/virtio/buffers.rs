//! The guest memory that one half of a descriptor chain names: a list of pieces, used up from the
//! front. The spec lets a driver cut a message into descriptors anywhere (virtio 1.2, section
//! 2.7.4), so devices read headers and payload through this and never look at descriptors.

use vm_memory::VolatileSlice;

/// Pieces of guest memory. Never formed into a Rust slice: the guest may write them at any time.
#[derive(Debug, Default)]
pub struct Buffers<'m> {
    slices: Vec<VolatileSlice<'m>>,
    /// Pieces before this one are used up.
    first: usize,
    len: usize,
}

impl<'m> Buffers<'m> {
    pub fn push(&mut self, slice: VolatileSlice<'m>) {
        if !slice.is_empty() {
            self.len += slice.len();
            self.slices.push(slice);
        }
    }

    /// Bytes left.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces that are left.
    pub fn slices(&self) -> &[VolatileSlice<'m>] {
        &self.slices[self.first..]
    }

    /// Uses up `count` bytes, or all if there are fewer.
    pub fn advance(&mut self, count: usize) {
        let mut count = count.min(self.len);
        self.len -= count;
        while count > 0 {
            let slice = &mut self.slices[self.first];
            if count < slice.len() {
                *slice = tail(slice, count);
                return;
            }
            count -= slice.len();
            self.first += 1;
        }
    }

    /// Cuts what is behind the first `at` bytes off and returns it; nothing if there are fewer.
    pub fn split_off(&mut self, at: usize) -> Buffers<'m> {
        let mut rest = Buffers::default();
        if at >= self.len {
            return rest;
        }
        let mut before = at;
        let mut index = self.first;
        while self.slices[index].len() <= before {
            before -= self.slices[index].len();
            index += 1;
        }
        rest.slices = self.slices.split_off(index);
        rest.len = self.len - at;
        self.len = at;
        if before > 0 {
            self.slices.push(head(&rest.slices[0], before));
            rest.slices[0] = tail(&rest.slices[0], before);
        }
        rest
    }

    /// Copies from guest memory and uses it up. `None` if there is less than asked for.
    pub fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut out = [0; N];
        (self.copy_out(&mut out) == N).then_some(out)
    }

    /// Copies from guest memory as much as there is room for, and uses it up.
    pub fn copy_out(&mut self, out: &mut [u8]) -> usize {
        let total = out.len().min(self.len);
        let mut done = 0;
        while done < total {
            let slice = &self.slices[self.first];
            let count = slice.len().min(total - done);
            slice.copy_to(&mut out[done..done + count]);
            done += count;
            self.advance(count);
        }
        total
    }

    /// Copies to guest memory as much as fits, and uses it up.
    pub fn copy_in(&mut self, bytes: &[u8]) -> usize {
        let total = bytes.len().min(self.len);
        let mut done = 0;
        while done < total {
            let slice = &self.slices[self.first];
            let count = slice.len().min(total - done);
            slice.copy_from(&bytes[done..done + count]);
            done += count;
            self.advance(count);
        }
        total
    }
}

fn head<'m>(slice: &VolatileSlice<'m>, count: usize) -> VolatileSlice<'m> {
    slice
        .subslice(0, count)
        .expect("callers stay below the piece's length")
}

fn tail<'m>(slice: &VolatileSlice<'m>, count: usize) -> VolatileSlice<'m> {
    slice
        .offset(count)
        .expect("callers stay below the piece's length")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffers<'m>(parts: &'m mut [Vec<u8>]) -> Buffers<'m> {
        let mut buffers = Buffers::default();
        parts
            .iter_mut()
            .for_each(|part| buffers.push(VolatileSlice::from(part.as_mut_slice())));
        buffers
    }

    fn drain(mut buffers: Buffers<'_>) -> Vec<u8> {
        let mut out = vec![0; buffers.len()];
        buffers.copy_out(&mut out);
        out
    }

    #[test]
    fn message_cut_at_any_place_reads_the_same() {
        let message: Vec<u8> = (0..10).collect();
        for first in 0..=10 {
            for second in first..=10 {
                let mut parts = vec![
                    message[..first].to_vec(),
                    message[first..second].to_vec(),
                    message[second..].to_vec(),
                ];
                let mut buffers = buffers(&mut parts);
                assert_eq!(buffers.take::<4>(), Some([0, 1, 2, 3]));
                assert_eq!(buffers.len(), 6);
                assert_eq!(drain(buffers), [4, 5, 6, 7, 8, 9]);
            }
        }
    }

    #[test]
    fn split_at_any_place_loses_nothing() {
        for at in 0..=8 {
            let mut parts = vec![vec![0, 1, 2], vec![3], vec![4, 5, 6]];
            let mut front = buffers(&mut parts);
            let back = front.split_off(at);
            assert_eq!(front.len() + back.len(), 7);
            assert_eq!(front.len(), at.min(7));
            let joined = [drain(front), drain(back)].concat();
            assert_eq!(joined, [0, 1, 2, 3, 4, 5, 6]);
        }
    }

    #[test]
    fn split_after_a_part_was_used_counts_from_what_is_left() {
        let mut parts = vec![vec![0, 1, 2], vec![3, 4, 5]];
        let mut front = buffers(&mut parts);
        front.advance(4);
        let back = front.split_off(1);
        assert_eq!((drain(front), drain(back)), (vec![4], vec![5]));
    }

    #[test]
    fn taking_more_than_there_is_gives_nothing() {
        let mut parts = vec![vec![1, 2, 3]];
        assert_eq!(buffers(&mut parts).take::<4>(), None);
        assert_eq!(Buffers::default().take::<1>(), None);
    }

    #[test]
    fn writing_fills_pieces_in_order_and_stops_at_the_end() {
        let mut parts = vec![vec![0; 2], vec![0; 2]];
        let mut target = buffers(&mut parts);
        assert_eq!(target.copy_in(&[1, 2, 3]), 3);
        assert_eq!(target.copy_in(&[4, 5]), 1);
        assert!(target.is_empty());
        target.advance(1);
        assert_eq!(parts, [[1, 2], [3, 4]]);
    }
}
