//! Non-temporal stores: they bypass the caches, so that the destination is not read before it is overwritten.

#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::avx512;
use crate::element::Element;
use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::prefetch::CACHE_LINE;

/// `to = from`, with non-temporal stores if the instruction set is AVX-512 or wider and `to` consists of whole cache
/// lines; otherwise an ordinary copy. Call [`store_fence`] after the last one.
#[inline(always)]
pub(crate) fn store_non_temporal<E: Element>(isa: Isa, to: &mut [E], from: &[E]) {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512()
        && to.as_ptr().addr().is_multiple_of(CACHE_LINE)
        && size_of_val(to).is_multiple_of(CACHE_LINE)
    {
        assert_eq!(to.len(), from.len(), "non-temporal store");
        // SAFETY: an `Isa` proves that the processor has it; `to` is as long as `from` and aligned.
        return unsafe {
            avx512::store_non_temporal(to.as_mut_ptr().cast(), from.as_ptr().cast(), size_of_val(to))
        };
    }
    let _ = isa;
    to.copy_from_slice(from);
}

/// Orders earlier calls of [`store_non_temporal`] before every later store of this thread, as other threads see them.
#[inline(always)]
pub(crate) fn store_fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE, which every x86-64 has.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}
