//! Memory for activations and packed weights.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::element::Element;

/// A fixed number of elements, initially zero, aligned to a cache line. A vector load that straddles two lines makes
/// matmuls up to a third slower.
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

// SAFETY: a buffer owns its elements, like a Vec.
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
        // SAFETY: the size of the layout is not zero.
        let start = unsafe { alloc_zeroed(layout) }.cast::<E>();
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, len }
    }
}

fn layout<E>(len: usize) -> Layout {
    let elements = Layout::array::<E>(len).expect("the size of a buffer overflows");
    elements.align_to(64).expect("the size of a buffer overflows")
}

impl<E> Drop for Buffer<E> {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: `zeroed` allocated the memory with this layout; elements need no drop.
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
        // SAFETY: `len` elements, zero bits or written since, which are valid for every `Element`.
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
        write!(f, "Buffer of {} elements", self.len)
    }
}

/// A value aligned to a cache line.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(crate) struct CacheAligned<T>(pub(crate) T);
