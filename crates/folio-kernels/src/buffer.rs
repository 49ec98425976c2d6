//! Memory for activations and packed weights.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::element::Element;

/// A fixed number of elements, zero at first, that starts on a cache line: a register that is loaded from an odd
/// place touches two lines, which costs products up to a third of their speed.
///
/// ```
/// use folio_kernels::buffer::Buffer;
/// let buffer = Buffer::<f32>::zeroed(3);
/// assert_eq!(*buffer, [0.0; 3]);
/// assert!(buffer.as_ptr().addr().is_multiple_of(64));
/// ```
pub struct Buffer<E> {
    start: NonNull<E>,
    len: usize,
}

// SAFETY: a buffer owns its elements, as a Vec does.
unsafe impl<E: Send> Send for Buffer<E> {}
// SAFETY: as above.
unsafe impl<E: Sync> Sync for Buffer<E> {}

impl<E: Element> Buffer<E> {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self { start: NonNull::dangling(), len };
        }
        let layout = layout::<E>(len);
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) }.cast::<E>();
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, len }
    }
}

fn layout<E>(len: usize) -> Layout {
    let elements = Layout::array::<E>(len).expect("a size that fits into memory");
    elements.align_to(64).expect("a size that fits into memory")
}

impl<E> Drop for Buffer<E> {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: `zeroed` got the memory with this layout; elements need no drop.
            unsafe { dealloc(self.start.as_ptr().cast(), layout::<E>(self.len)) };
        }
    }
}

impl<E: Element> Default for Buffer<E> {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

impl<E: Element> Clone for Buffer<E> {
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl<E> Deref for Buffer<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        // SAFETY: `len` elements, all zero bits or written since, which every `Element` accepts.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<E> DerefMut for Buffer<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<E> fmt::Debug for Buffer<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer of {}", self.len)
    }
}
