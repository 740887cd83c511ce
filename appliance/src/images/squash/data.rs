//! File data: whole blocks, and fragments that hold many small files.
//!
//! # Threads
//! This thread reads, cuts and writes; the others only compress. Block `n` goes to thread
//! `n % threads` and results are taken back in the same turn, so the order never depends on who
//! is faster.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use sha2::{Digest as _, Sha256};

use super::meta::{compression_error, compressor};
use super::{Output, Shape, Survey, file_extent, fits};
use crate::images::error::ImageError;
use crate::images::spool::SpoolReader;
use crate::images::tree::{Extent, InodeId, Tree};

/// More do not help: one thread reads and writes.
pub(super) const MAX_THREADS: usize = 8;
/// Blocks on their way per thread; bounds the memory.
const DEPTH: usize = 4;
/// In the size of a block: stored as it is.
const STORED: u32 = 1 << 24;
/// A block of zeros has no bytes in the image.
const HOLE: u32 = 0;

/// Where the data of a file is in the image.
#[derive(Debug, Clone, Default)]
pub(super) struct FileData {
    /// The first block that has bytes; `None` without one.
    pub(super) start: Option<u64>,
    pub(super) blocks: Vec<u32>,
    /// Fragment number and offset in it, for files smaller than a block.
    pub(super) fragment: Option<(u32, u32)>,
    pub(super) length: u64,
    /// Bytes in holes.
    pub(super) sparse: u64,
}

pub(super) struct Data {
    files: Vec<FileData>,
    /// Per inode: index into `files`.
    of_inode: Vec<Option<u32>>,
    /// Place and size of each fragment.
    pub(super) fragments: Vec<(u64, u32)>,
}

impl Data {
    pub(super) fn file(&self, id: InodeId) -> Option<&FileData> {
        let index = self.of_inode[id.index()]?;
        self.files.get(index as usize)
    }

    pub(super) fn fragment_table(&self) -> Vec<u8> {
        let mut table = Vec::with_capacity(self.fragments.len() * 16);
        for (start, size) in &self.fragments {
            table.extend_from_slice(&start.to_le_bytes());
            table.extend_from_slice(&size.to_le_bytes());
            table.extend_from_slice(&[0; 4]);
        }
        table
    }
}

/// What a finished block belongs to.
enum Owner {
    Block { file: usize, index: usize },
    Fragment { index: usize },
}

struct Packed {
    bytes: Vec<u8>,
    is_stored: bool,
}

struct Lane {
    todo: Sender<Vec<u8>>,
    done: Receiver<std::io::Result<Packed>>,
}

pub(super) struct DataWriter<'a, 'o> {
    spool: &'a SpoolReader,
    out: &'a mut Output<'o>,
    lanes: Vec<Lane>,
    pending: VecDeque<Owner>,
    /// Blocks handed out and blocks taken back; modulo the lanes they say whose turn it is.
    sent: usize,
    taken: usize,
    data: Data,
    fragment: Vec<u8>,
    block_bytes: usize,
}

impl<'a, 'o> DataWriter<'a, 'o> {
    /// Writes the data of all files.
    pub(super) fn run(
        tree: &Tree,
        survey: &Survey,
        spool: &'a SpoolReader,
        out: &'a mut Output<'o>,
        shape: Shape,
        threads: usize,
    ) -> Result<Data, ImageError> {
        thread::scope(|scope| {
            let mut lanes = Vec::new();
            for _ in 0..threads.max(1) {
                let compressor = (!shape.is_stored).then(|| compressor(shape.level));
                let mut compressor = compressor.transpose()?;
                let (todo, todo_here) = channel::<Vec<u8>>();
                let (done_here, done) = channel();
                // Ends when `todo` is dropped with the writer, on success and on error alike.
                scope.spawn(move || {
                    for block in todo_here {
                        if done_here.send(pack(compressor.as_mut(), block)).is_err() {
                            break;
                        }
                    }
                });
                lanes.push(Lane { todo, done });
            }
            let mut writer = DataWriter {
                spool,
                out,
                lanes,
                pending: VecDeque::new(),
                sent: 0,
                taken: 0,
                data: Data {
                    files: Vec::new(),
                    of_inode: vec![None; tree.inode_slots()],
                    fragments: Vec::new(),
                },
                fragment: Vec::with_capacity(shape.block_bytes()),
                block_bytes: shape.block_bytes(),
            };
            writer.files(tree, survey)?;
            writer.close_fragment()?;
            while !writer.pending.is_empty() {
                writer.take_back()?;
            }
            Ok(writer.data)
        })
    }

    fn files(&mut self, tree: &Tree, survey: &Survey) -> Result<(), ImageError> {
        let mut of_length: HashMap<u64, u32> = HashMap::new();
        for &id in &survey.order {
            if let Some(extent) = file_extent(tree, id) {
                *of_length.entry(extent.length).or_default() += 1;
            }
        }
        let mut known: HashMap<(u64, [u8; 32]), u32> = HashMap::new();
        for &id in &survey.order {
            let Some(extent) = file_extent(tree, id) else {
                continue;
            };
            // Only files of equal length can be equal; most bytes need no hash.
            let key = match of_length.get(&extent.length) {
                Some(2..) => Some((extent.length, self.hash(extent)?)),
                _ => None,
            };
            let index = match key.and_then(|key| known.get(&key)) {
                Some(&index) => index,
                None => {
                    let index = fits(self.data.files.len())?;
                    self.file(extent)?;
                    if let Some(key) = key {
                        known.insert(key, index);
                    }
                    index
                }
            };
            self.data.of_inode[id.index()] = Some(index);
        }
        Ok(())
    }

    fn hash(&self, extent: Extent) -> Result<[u8; 32], ImageError> {
        let mut hash = Sha256::new();
        let mut offset = 0;
        while offset < extent.length {
            let block = self.read(extent, offset)?;
            hash.update(&block);
            offset += block.len() as u64;
        }
        Ok(hash.finalize().into())
    }

    fn file(&mut self, extent: Extent) -> Result<(), ImageError> {
        let file = self.data.files.len();
        self.data.files.push(FileData {
            length: extent.length,
            ..FileData::default()
        });
        if extent.length < self.block_bytes as u64 {
            return self.small_file(file, extent);
        }
        let mut offset = 0;
        while offset < extent.length {
            let block = self.read(extent, offset)?;
            offset += block.len() as u64;
            let data = &mut self.data.files[file];
            let index = data.blocks.len();
            data.blocks.push(HOLE);
            if block.iter().all(|&byte| byte == 0) {
                data.sparse += block.len() as u64;
            } else {
                self.hand_out(block, Owner::Block { file, index })?;
            }
        }
        Ok(())
    }

    fn small_file(&mut self, file: usize, extent: Extent) -> Result<(), ImageError> {
        // An empty file has no fragment: the kernel refuses a reference to zero bytes.
        if extent.length == 0 {
            return Ok(());
        }
        let bytes = self.read(extent, 0)?;
        if self.fragment.len() + bytes.len() > self.block_bytes {
            self.close_fragment()?;
        }
        let place = (fits(self.data.fragments.len())?, fits(self.fragment.len())?);
        self.data.files[file].fragment = Some(place);
        self.fragment.extend_from_slice(&bytes);
        Ok(())
    }

    fn close_fragment(&mut self) -> Result<(), ImageError> {
        if self.fragment.is_empty() {
            return Ok(());
        }
        let block = std::mem::replace(&mut self.fragment, Vec::with_capacity(self.block_bytes));
        let index = self.data.fragments.len();
        self.data.fragments.push((0, 0));
        self.hand_out(block, Owner::Fragment { index })
    }

    /// At most one block.
    fn read(&self, extent: Extent, offset: u64) -> Result<Vec<u8>, ImageError> {
        let length = usize::try_from(extent.length - offset)
            .unwrap_or(self.block_bytes)
            .min(self.block_bytes);
        let mut block = vec![0; length];
        self.spool
            .read(extent, offset, &mut block)
            .map_err(|error| ImageError::storage("read the temporary file", &error))?;
        Ok(block)
    }

    fn hand_out(&mut self, block: Vec<u8>, owner: Owner) -> Result<(), ImageError> {
        if self.pending.len() == self.lanes.len() * DEPTH {
            self.take_back()?;
        }
        let lane = &self.lanes[self.sent % self.lanes.len()];
        lane.todo.send(block).map_err(|_| thread_died())?;
        self.sent += 1;
        self.pending.push_back(owner);
        Ok(())
    }

    fn take_back(&mut self) -> Result<(), ImageError> {
        let Some(owner) = self.pending.pop_front() else {
            return Ok(());
        };
        let lane = &self.lanes[self.taken % self.lanes.len()];
        self.taken += 1;
        let packed = lane
            .done
            .recv()
            .map_err(|_| thread_died())?
            .map_err(|error| compression_error(&error))?;
        let at = self.out.append(&packed.bytes)?;
        let stored = if packed.is_stored { STORED } else { 0 };
        let size = fits::<u32>(packed.bytes.len())? | stored;
        match owner {
            Owner::Fragment { index } => self.data.fragments[index] = (at, size),
            Owner::Block { file, index } => {
                let data = &mut self.data.files[file];
                data.start.get_or_insert(at);
                data.blocks[index] = size;
            }
        }
        Ok(())
    }
}

fn pack(
    compressor: Option<&mut zstd::bulk::Compressor<'_>>,
    block: Vec<u8>,
) -> std::io::Result<Packed> {
    let Some(compressor) = compressor else {
        return Ok(Packed {
            bytes: block,
            is_stored: true,
        });
    };
    let bytes = compressor.compress(&block)?;
    Ok(match bytes.len() < block.len() {
        true => Packed {
            bytes,
            is_stored: false,
        },
        false => Packed {
            bytes: block,
            is_stored: true,
        },
    })
}

fn thread_died() -> ImageError {
    ImageError::worker_failed("A compression thread died")
}
