//! The innermost loop of every matrix product: one tile of the result, kept in registers.
//!
//! A tile is [`ROWS`] rows by [`COLS`] columns: with AVX-512 six times four registers of sums, which with four of
//! the right operand and one of the left fill 29 of the 32. Measured on Zen 5 (2 threads): see docs/log.md.

use crate::element::Element;
use crate::isa::Isa;
use crate::quantized::Line;

/// Rows of a tile.
pub(crate) const ROWS: usize = 6;
/// Columns of a tile, and of a panel of the right operand.
pub(crate) const COLS: usize = 64;
/// Columns that one step of every instruction set handles together.
const GROUP: usize = 16;

/// A tile of sums.
#[repr(align(64))]
pub(crate) struct Tile(pub(crate) [[f32; COLS]; ROWS]);

impl Tile {
    /// As a place for sums.
    pub(crate) fn sums(&mut self, add: bool) -> Sums {
        Sums { start: self.0.as_mut_ptr().cast(), stride: COLS, add }
    }
}

/// Where a product puts its sums: in a [`Tile`], or straight into the result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sums {
    /// The first of the first row.
    pub(crate) start: *mut f32,
    /// From one row to the next.
    pub(crate) stride: usize,
    /// Whether the sums start with what is there rather than with zero.
    pub(crate) add: bool,
}

impl Sums {
    /// Whether so many columns can be written without the ones behind them: see [`multiply`].
    pub(crate) fn fit(cols: usize) -> bool {
        cols.is_multiple_of(GROUP)
    }

    /// A column of a row.
    ///
    /// # Safety
    /// Both must be inside.
    #[inline(always)]
    unsafe fn at(self, row: usize, col: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.start.add(row * self.stride + col) }
    }
}

/// How a product walks through its operands to fill one tile. Lengths are in units of 32 bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    /// Rows of the tile that are wanted, 1 to [`ROWS`].
    pub(crate) rows: usize,
    /// Columns of the tile that are wanted, 1 to [`COLS`].
    pub(crate) cols: usize,
    /// Stretches of the sum that lie apart in memory.
    pub(crate) segments: usize,
    /// Units of one stretch.
    pub(crate) units: usize,
    /// From one unit of a row of the left operand to the next.
    pub(crate) lhs_step: usize,
    /// From one stretch of the left operand to the next.
    pub(crate) lhs_segment: usize,
    /// From one stretch of the right operand to the next.
    pub(crate) rhs_segment: usize,
}

/// `sums = lhs rhs` or `sums += lhs rhs` for the rows and columns that are wanted; columns up to the next multiple
/// of 16 are overwritten too.
///
/// # Safety
/// What is overwritten must be there to be written, and overlap no operand. For every row `r` below `walk.rows`,
/// segment `s` and unit `u`, the unit at `lhs[r] + s * lhs_segment + u * lhs_step` must be readable; so must the [`COLS`]
/// units from `rhs + s * rhs_segment + u * COLS`.
pub(crate) unsafe fn multiply<E: Element>(
    isa: Isa,
    sums: Sums,
    lhs: &[*const E; ROWS],
    rhs: *const E,
    walk: &Walk,
) {
    // SAFETY: passed on to the caller.
    unsafe {
        match walk.rows {
            1 => rows::<E, 1>(isa, sums, lhs, rhs, walk),
            2 => rows::<E, 2>(isa, sums, lhs, rhs, walk),
            3 => rows::<E, 3>(isa, sums, lhs, rhs, walk),
            4 => rows::<E, 4>(isa, sums, lhs, rhs, walk),
            5 => rows::<E, 5>(isa, sums, lhs, rhs, walk),
            _ => rows::<E, 6>(isa, sums, lhs, rhs, walk),
        }
    }
}

/// [`multiply`] for `R` rows.
///
/// # Safety
/// As [`multiply`].
#[inline]
unsafe fn rows<E: Element, const R: usize>(
    isa: Isa,
    sums: Sums,
    lhs: &[*const E; ROWS],
    rhs: *const E,
    walk: &Walk,
) {
    // SAFETY: passed on to the caller; an `Isa` exists only if the processor has it.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        {
            if isa.has_avx512() && E::PAIR == 1 {
                return x86::avx512_f32::<R>(sums, lhs.each_ref().map(|&row| row.cast()), rhs.cast(), walk);
            }
            if isa.has_avx512_bf16() && E::PAIR == 2 {
                return x86::avx512_bf16::<R>(sums, lhs.each_ref().map(|&row| row.cast()), rhs.cast(), walk);
            }
            if isa.has_avx2() {
                return x86::avx2::<E, R>(sums, lhs, rhs, walk);
            }
        }
        let _ = isa;
        groups::<E, R>(sums, lhs, rhs, walk);
    }
}

/// The sums of some rows with a panel of eight bits, if the processor has instructions to widen them on the way; each sum
/// runs in the order of the depth. Rows from `rows` on mean nothing.
#[inline(always)]
pub(crate) fn multiply_quantized(
    isa: Isa,
    rows: usize,
    lhs: &[&[f32]; ROWS],
    lines: &[Line],
) -> Option<Tile> {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512() {
        assert!(lhs.iter().all(|row| row.len() == lines.len()), "rows of {} lines", lines.len());
        let mut tile = Tile([[0.0; COLS]; ROWS]);
        let (segments, units) = (1, lines.len());
        let walk = Walk { rows, cols: COLS, segments, units, lhs_step: 1, lhs_segment: 0, rhs_segment: 0 };
        let lhs = lhs.map(<[f32]>::as_ptr);
        let rhs = lines.as_ptr().cast();
        // SAFETY: an `Isa` exists only if the processor has it; every row and the panel have as many units as the walk.
        unsafe {
            match rows {
                1 => x86::avx512_i8::<1>(tile.sums(false), lhs, rhs, &walk),
                2 => x86::avx512_i8::<2>(tile.sums(false), lhs, rhs, &walk),
                3 => x86::avx512_i8::<3>(tile.sums(false), lhs, rhs, &walk),
                4 => x86::avx512_i8::<4>(tile.sums(false), lhs, rhs, &walk),
                5 => x86::avx512_i8::<5>(tile.sums(false), lhs, rhs, &walk),
                _ => x86::avx512_i8::<6>(tile.sums(false), lhs, rhs, &walk),
            }
        }
        return Some(tile);
    }
    let _ = (isa, rows, lhs, lines);
    None
}

/// The tile in plain Rust, [`GROUP`] columns at a time; compiled for the caller's instruction set.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn groups<E: Element, const R: usize>(sums: Sums, lhs: &[*const E; ROWS], rhs: *const E, walk: &Walk) {
    for first in (0..walk.cols).step_by(GROUP) {
        // SAFETY: the caller vouches for the rows and for whole groups of columns.
        let places: [*mut [f32; GROUP]; R] = std::array::from_fn(|r| unsafe { sums.at(r, first).cast() });
        let mut group = [[0.0f32; GROUP]; R];
        if sums.add {
            // SAFETY: as above.
            group = places.map(|place| unsafe { *place });
        }
        for segment in 0..walk.segments {
            for unit in 0..walk.units {
                // SAFETY: the caller vouches for every unit of the walk; a unit is `E::PAIR` elements.
                let rhs = unsafe {
                    let start = segment * walk.rhs_segment + unit * COLS + first;
                    std::slice::from_raw_parts(rhs.add(start * E::PAIR), GROUP * E::PAIR)
                };
                for (r, sums) in group.iter_mut().enumerate() {
                    let start = (segment * walk.lhs_segment + unit * walk.lhs_step) * E::PAIR;
                    for half in 0..E::PAIR {
                        // SAFETY: as above.
                        let a = unsafe { *lhs[r].add(start + half) }.to_f32();
                        for (c, sum) in sums.iter_mut().enumerate() {
                            *sum = multiply_add(a, rhs[c * E::PAIR + half].to_f32(), *sum);
                        }
                    }
                }
            }
        }
        for (place, group) in places.into_iter().zip(group) {
            // SAFETY: as above.
            unsafe { *place = group };
        }
    }
}

/// `a b + c`, in one rounding where that is one instruction.
#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { a.mul_add(b, c) } else { a * b + c }
}

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// What memory is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Intent {
    /// To be read at once: into the first-level cache.
    Read,
    /// To be read some tiles later: into the second-level cache.
    ReadLater,
    /// To be overwritten at once.
    Write,
}

/// Asks for the cache line at an address to be brought near, to be read or to be written; does nothing where it is
/// not known how, and nothing bad where there is no memory.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8, intent: Intent) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that reads and writes nothing.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        match intent {
            Intent::Read => _mm_prefetch::<_MM_HINT_T0>(address.cast()),
            Intent::ReadLater => _mm_prefetch::<_MM_HINT_T1>(address.cast()),
            Intent::Write => _mm_prefetch::<_MM_HINT_ET0>(address.cast()),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (address, intent);
}

/// `to = from` where it will not be read for long: past the caches, if the processor can and `to` is made of whole cache
/// lines, so that these are not read before they are written.
#[inline(always)]
pub(crate) fn store_past_caches<E: Element>(isa: Isa, to: &mut [E], from: &[E]) {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512() && to.as_ptr().addr().is_multiple_of(LINE) && size_of_val(to).is_multiple_of(LINE) {
        assert_eq!(to.len(), from.len(), "storing past the caches");
        // SAFETY: an `Isa` exists only if the processor has it; `to` is as long as `from` and aligned.
        return unsafe {
            x86::store_past_caches(to.as_mut_ptr().cast(), from.as_ptr().cast(), size_of_val(to))
        };
    }
    let _ = isa;
    to.copy_from_slice(from);
}

/// Makes what [`store_past_caches`] wrote visible to other threads before anything that this one writes next.
#[inline(always)]
pub(crate) fn wait_for_stores() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE, which every x86-64 has.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![expect(
        clippy::needless_range_loop,
        reason = "loops over registers, unrolled by their constant bounds"
    )]

    use std::arch::x86_64::*;
    use std::array::from_fn;

    use super::{COLS, Element, Intent, LINE, ROWS, Sums, Walk, prefetch};

    /// From so many rows on the processor sees, while it computes, too few units ahead to keep the memory busy by itself.
    const ROWS_TO_FETCH_FOR: usize = 3;
    /// How far ahead the right operand is asked for then: 32 units, 8 KiB. Measured: docs/log.md.
    const FETCH_AHEAD: usize = 32 * COLS;

    /// # Safety
    /// As [`super::multiply`]; the processor must have AVX-512 F.
    #[target_feature(enable = "avx512f,fma")]
    pub(super) unsafe fn avx512_f32<const R: usize>(
        sums: Sums,
        lhs: [*const f32; ROWS],
        rhs: *const f32,
        walk: &Walk,
    ) {
        // SAFETY: passed on to the caller.
        unsafe {
            vectors::<R>(sums, lhs, rhs, walk, |sum, a, b| _mm512_fmadd_ps(a, b, sum));
        }
    }

    /// # Safety
    /// The units of the walk must be readable in every row of `lhs`, and as many lines of [`COLS`] bytes from `rhs` on; the
    /// processor must have AVX-512 F.
    #[target_feature(enable = "avx512f,fma")]
    pub(super) unsafe fn avx512_i8<const R: usize>(
        sums: Sums,
        lhs: [*const f32; ROWS],
        rhs: *const i8,
        walk: &Walk,
    ) {
        // SAFETY: passed on to the caller.
        unsafe {
            let load = |place: usize| {
                let bytes = _mm_loadu_si128(rhs.add(place).cast());
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))
            };
            fixed::<R, 4>(sums, lhs, load, walk, |sum, a, b| _mm512_fmadd_ps(a, b, sum));
        }
    }

    /// # Safety
    /// As [`super::multiply`]; the processor must have AVX-512 F and BF16.
    #[target_feature(enable = "avx512f,avx512bf16,fma")]
    pub(super) unsafe fn avx512_bf16<const R: usize>(
        sums: Sums,
        lhs: [*const f32; ROWS],
        rhs: *const f32,
        walk: &Walk,
    ) {
        // SAFETY: passed on to the caller; a register of units is one of pairs, of the same size.
        unsafe {
            let pairs = |units| std::mem::transmute::<__m512, __m512bh>(units);
            vectors::<R>(sums, lhs, rhs, walk, |sum, a, b| _mm512_dpbf16_ps(sum, pairs(a), pairs(b)));
        }
    }

    /// # Safety
    /// As [`super::multiply`]; the caller is compiled for AVX-512 F and what `multiply_add` needs.
    #[inline(always)]
    unsafe fn vectors<const R: usize>(
        sums: Sums,
        lhs: [*const f32; ROWS],
        rhs: *const f32,
        walk: &Walk,
        multiply_add: impl Fn(__m512, __m512, __m512) -> __m512 + Copy,
    ) {
        // SAFETY: passed on to the caller.
        unsafe {
            let load = |place: usize| {
                if R >= ROWS_TO_FETCH_FOR {
                    prefetch(rhs.wrapping_add(place + FETCH_AHEAD).cast(), Intent::Read);
                }
                _mm512_loadu_ps(rhs.add(place))
            };
            match walk.cols.div_ceil(16) {
                1 => fixed::<R, 1>(sums, lhs, load, walk, multiply_add),
                2 => fixed::<R, 2>(sums, lhs, load, walk, multiply_add),
                3 => fixed::<R, 3>(sums, lhs, load, walk, multiply_add),
                _ => fixed::<R, 4>(sums, lhs, load, walk, multiply_add),
            }
        }
    }

    /// `load` gives 16 columns of a unit of the right operand, which begin so many columns after its start.
    ///
    /// # Safety
    /// As [`vectors`].
    #[inline(always)]
    unsafe fn fixed<const R: usize, const V: usize>(
        sums: Sums,
        lhs: [*const f32; ROWS],
        load: impl Fn(usize) -> __m512,
        walk: &Walk,
        multiply_add: impl Fn(__m512, __m512, __m512) -> __m512 + Copy,
    ) {
        // SAFETY: rows and columns are those of the tile; the operands are the caller's promise.
        unsafe {
            let mut tile = [[_mm512_setzero_ps(); V]; R];
            if sums.add {
                tile = from_fn(|r| from_fn(|v| _mm512_loadu_ps(sums.at(r, 16 * v))));
            }
            for segment in 0..walk.segments {
                let mut right = segment * walk.rhs_segment;
                let mut offset = segment * walk.lhs_segment;
                for _ in 0..walk.units {
                    let b: [__m512; V] = from_fn(|v| load(right + 16 * v));
                    right += COLS;
                    for r in 0..R {
                        let a = _mm512_set1_ps(lhs[r].add(offset).read_unaligned());
                        for v in 0..V {
                            tile[r][v] = multiply_add(tile[r][v], a, b[v]);
                        }
                    }
                    offset += walk.lhs_step;
                }
            }
            for r in 0..R {
                for v in 0..V {
                    _mm512_storeu_ps(sums.at(r, 16 * v), tile[r][v]);
                }
            }
        }
    }

    /// # Safety
    /// The processor must have AVX-512 F; both places must hold `len` bytes, whole cache lines, `to` on one.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn store_past_caches(to: *mut u8, from: *const u8, len: usize) {
        // SAFETY: the caller vouches for both places.
        unsafe {
            for start in (0..len).step_by(LINE) {
                _mm512_stream_si512(to.add(start).cast(), _mm512_loadu_si512(from.add(start).cast()));
            }
        }
    }

    /// # Safety
    /// As [`super::multiply`]; the processor must have AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2<E: Element, const R: usize>(
        sums: Sums,
        lhs: &[*const E; ROWS],
        rhs: *const E,
        walk: &Walk,
    ) {
        // SAFETY: rows and columns are those of the tile; the operands are the caller's promise.
        unsafe {
            for first in (0..walk.cols).step_by(16) {
                let mut tile = [[_mm256_setzero_ps(); 2]; R];
                if sums.add {
                    tile = from_fn(|r| from_fn(|v| _mm256_loadu_ps(sums.at(r, first + 8 * v))));
                }
                for segment in 0..walk.segments {
                    let mut rhs = rhs.cast::<f32>().add(segment * walk.rhs_segment + first);
                    let mut offset = segment * walk.lhs_segment;
                    for _ in 0..walk.units {
                        let b: [__m256; 2] = from_fn(|v| _mm256_loadu_ps(rhs.add(8 * v)));
                        for r in 0..R {
                            let a = _mm256_set1_ps(lhs[r].cast::<f32>().add(offset).read_unaligned());
                            for v in 0..2 {
                                tile[r][v] = if E::PAIR == 1 {
                                    _mm256_fmadd_ps(a, b[v], tile[r][v])
                                } else {
                                    let sum = _mm256_fmadd_ps(low(a), low(b[v]), tile[r][v]);
                                    _mm256_fmadd_ps(high(a), high(b[v]), sum)
                                };
                            }
                        }
                        rhs = rhs.add(COLS);
                        offset += walk.lhs_step;
                    }
                }
                for r in 0..R {
                    for v in 0..2 {
                        _mm256_storeu_ps(sums.at(r, first + 8 * v), tile[r][v]);
                    }
                }
            }
        }
    }

    /// The first bfloat16 of each unit, as f32.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn low(units: __m256) -> __m256 {
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(units)))
    }

    /// The second bfloat16 of each unit, as f32.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn high(units: __m256) -> __m256 {
        let mask = _mm256_set1_epi32(0xffff_0000_u32 as i32);
        _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(units), mask))
    }
}
