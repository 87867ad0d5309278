//! Memory for programs that live for a millisecond.
//!
//! musl's malloc asks the kernel for a page and more per size of block, and
//! gives it back with the last one: for a tool that makes a hundred small blocks
//! this was a third of its instructions and half of its system calls. Here small
//! blocks come out of one piece, which is there from the start and costs only the
//! pages that are touched. A block given back waits in the list of its class for
//! the next of that class. What is large, or beyond the piece, is malloc's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, UnsafeCell};
use std::ptr::null_mut;

/// The whole piece, in bytes.
const PIECE: usize = 256 * 1024;
/// Blocks have 16, 32, 64 ... bytes, and begin at a multiple of 16.
const LEAST: usize = 16;
/// So many classes: the last is 16 KiB.
const CLASSES: usize = 11;

#[repr(C, align(4096))]
struct Heap {
    piece: UnsafeCell<[u8; PIECE]>,
    used: Cell<usize>,
    free: [Cell<*mut u8>; CLASSES],
}

// SAFETY: the programs have one thread, always (unshare(2) of a user namespace
// refuses others). What is built for tests has more, and another allocator.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap =
    Heap { piece: UnsafeCell::new([0; PIECE]), used: Cell::new(0), free: [const { Cell::new(null_mut()) }; CLASSES] };

impl Heap {
    /// The class of a block, if it is a small one.
    fn class(layout: Layout) -> Option<usize> {
        let size = layout.size().max(LEAST);
        let class = (size - 1).ilog2() as usize + 1 - LEAST.ilog2() as usize;
        (class < CLASSES && layout.align() <= LEAST).then_some(class)
    }

    fn is_ours(&self, block: *mut u8) -> bool {
        block.addr().wrapping_sub(self.piece.get().addr()) < PIECE
    }

    /// A block that has not been used yet.
    fn fresh(&self, class: usize) -> Option<*mut u8> {
        let (at, size) = (self.used.get(), LEAST << class);
        if PIECE - at < size {
            return None;
        }
        self.used.set(at + size);
        Some(self.piece.get().cast::<u8>().wrapping_add(at))
    }
}

// SAFETY: a block is of its class's size, which is at least the layout's, and on
// a multiple of 16 from a page's beginning on, as all sizes are; it is in use by
// one caller, since it is either in the unused rest, or in a list, or given out.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(class) = Heap::class(layout) {
            let list = &self.free[class];
            let first = list.get();
            if !first.is_null() {
                // SAFETY: dealloc has written there which block is the next.
                list.set(unsafe { first.cast::<*mut u8>().read() });
                return first;
            }
            if let Some(block) = self.fresh(class) {
                return block;
            }
        }
        // SAFETY: the caller's layout, which is not empty.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if Heap::class(layout).is_none() {
            // Pages fresh from the kernel need no zeroing, and no touching.
            // SAFETY: the caller's layout, which is not empty.
            return unsafe { System.alloc_zeroed(layout) };
        }
        // SAFETY: the same.
        let block = unsafe { self.alloc(layout) };
        if !block.is_null() {
            // SAFETY: the block has that many bytes.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match Heap::class(layout) {
            Some(class) if self.is_ours(block) => {
                let list = &self.free[class];
                // SAFETY: the block is nobody's now, and at least 16 bytes on a
                // multiple of 16.
                unsafe { block.cast::<*mut u8>().write(list.get()) };
                list.set(block);
            }
            // SAFETY: what is not of our piece is from System, with this layout.
            _ => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !self.is_ours(block) {
            // SAFETY: what is not of our piece is from System, with this layout.
            return unsafe { System.realloc(block, layout, size) };
        }
        let Ok(wanted) = Layout::from_size_align(size, layout.align()) else { return null_mut() };
        if Heap::class(wanted) == Heap::class(layout) {
            return block;
        }
        // SAFETY: the caller's size, which is not zero.
        let to = unsafe { self.alloc(wanted) };
        if !to.is_null() {
            // SAFETY: both blocks are at least that large, and two of them.
            unsafe { to.copy_from_nonoverlapping(block, layout.size().min(size)) };
            // SAFETY: the caller's block with its layout, of which nobody knows any more.
            unsafe { self.dealloc(block, layout) };
        }
        to
    }
}
