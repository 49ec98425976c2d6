//! Matmuls with every size of tile and both kinds of left operand.

use folio_kernels::buffer::Buffer;
use folio_kernels::element::{Bf16, Element};
use folio_kernels::isa::Isa;
use folio_kernels::matmul::{Cost, Lhs, Rhs, Store, TileRange, matmul_into, tile_rows};
use folio_kernels::panels::{PanelDims, Panels};

use crate::support::{
    Expected, Random, TINY, aligned_nans, assert_same_bits, format, in_panels, nans, roundings, transposed,
    wide,
};

/// Up to two tiles of 6 rows and one more row.
const ROWS: std::ops::RangeInclusive<usize> = 1..=13;
/// Up to two panels and a partial one.
const COLS: std::ops::RangeInclusive<usize> = 1..=130;
const DEPTHS: [usize; 5] = [1, 2, 3, 8, 33];

/// A left and a right operand, and the expected result of their matmul.
struct Operands<E> {
    rows: usize,
    depth: usize,
    cols: usize,
    /// (rows, depth)
    lhs: Vec<E>,
    /// (depth, cols)
    rhs: Vec<E>,
}

impl<E: Element> Operands<E> {
    fn random(rows: usize, depth: usize, cols: usize) -> Self {
        let mut random = Random(121);
        let lhs = random.elements(rows * depth, 1.0);
        Self { rows, depth, cols, lhs, rhs: random.elements(depth * cols, 1.0) }
    }

    /// The rows from `first` on, added to `before` (rows, cols), from at most 5 segments. Each term is rounded once, and passes through at
    /// most as many additions as there are terms.
    fn expected(&self, before: &[f32], first: usize) -> Expected {
        let Self { rows, depth, cols, .. } = *self;
        let (lhs, rhs) = (wide(&self.lhs), wide(&self.rhs));
        let (mut want, mut size) = (vec![], vec![]);
        for (m, before) in (first..rows).zip(before.chunks_exact(cols)) {
            let mut sums: Vec<(f64, f64)> =
                before.iter().map(|&x| (f64::from(x), f64::from(x.abs()))).collect();
            for k in 0..depth {
                let a = lhs[m * depth + k];
                for ((sum, size), b) in sums.iter_mut().zip(&rhs[k * cols..][..cols]) {
                    *sum += a * b;
                    *size += (a * b).abs();
                }
            }
            want.extend(sums.iter().map(|sum| sum.0));
            size.extend(sums.iter().map(|sum| sum.1));
        }
        Expected::from_sizes("out", roundings::<E>(depth + 1, depth, 5), want, size)
    }

    fn rhs_dims(&self) -> PanelDims {
        PanelDims { depth: self.depth, cols: self.cols }
    }

    /// The left operand with rows that are `stride` apart. Padding that completes the last unit is finite, because it
    /// is multiplied by zero; all other padding is NaN.
    fn strided(&self, stride: usize) -> Buffer<E> {
        let units = self.depth.next_multiple_of(E::PER_UNIT);
        let mut lhs = aligned_nans::<E>((self.rows - 1) * stride + units);
        for (row, values) in self.lhs.chunks_exact(self.depth).enumerate() {
            lhs[row * stride..][..self.depth].copy_from_slice(values);
            lhs[row * stride + self.depth..][..units - self.depth].fill(E::from_f32(7.0));
        }
        lhs
    }

    /// A matrix (depth, cols) as `segments` panels of equal depth, `gap` units apart, with NaN between them.
    fn segmented(matrix: &[E], cols: usize, segments: usize, gap: usize) -> (PanelDims, Vec<E>, usize) {
        let part = matrix.len() / segments;
        let dims = PanelDims { depth: part / cols, cols };
        let stride = dims.len::<E>() + gap * E::PER_UNIT;
        let mut data = nans(segments * stride);
        for (to, part) in data.chunks_exact_mut(stride).zip(matrix.chunks_exact(part)) {
            to[..dims.len::<E>()].copy_from_slice(&in_panels(dims, part));
        }
        data.truncate(data.len() - gap * E::PER_UNIT);
        (dims, data, stride)
    }
}

/// Runs `matmul` and assembles its tiles. Asserts that each tile is reported once, at the right place.
fn collect<E: Element>(
    isa: Isa,
    rows: std::ops::Range<usize>,
    lhs: Lhs<E>,
    rhs: Panels<E>,
    cols: usize,
) -> Vec<f32> {
    let mut out = vec![f32::NAN; rows.len() * cols];
    let mut next = vec![0; rows.len()];
    let (first, last, step) = (rows.start, rows.end, tile_rows::<E>(isa));
    isa.run(
        #[inline(always)]
        || {
            rhs.matmul_with(
                isa,
                rows.clone(),
                lhs,
                [],
                Cost::High,
                #[inline(always)]
                |at, tile| {
                    let TileRange { row, col, rows, cols: width } = at;
                    // All rows of a tile, or an even number of them that does not end in the middle of a pair.
                    let (place, end) = ((row - first) % step, ((row - first) / step + 1) * step);
                    let end = end.min(last - first) - (row - first);
                    assert!(rows == end || (rows < end && rows.is_multiple_of(2)), "{at:?}");
                    assert!(place.is_multiple_of(2), "{at:?}");
                    assert_eq!(width, (cols - col).min(64), "{at:?}");
                    for (r, sums) in tile[..rows].iter().enumerate() {
                        let next = &mut next[row - first + r];
                        assert_eq!(col, *next, "tiles of a row must be in order: {at:?}");
                        *next += width;
                        let out = &mut out[(row - first + r) * cols + col..][..width];
                        assert!(out.iter().all(|x| x.is_nan()), "{at:?} is reported twice");
                        out.copy_from_slice(&sums[..width]);
                    }
                },
            );
        },
    );
    out
}

fn from_rows<E: Element>() {
    for depth in DEPTHS {
        for cols in COLS {
            for rows in ROWS {
                let case = Operands::<E>::random(rows, depth, cols);
                // A range that does not start with the first row, and strides of all remainders.
                let first = if rows > 7 { 3 } else { 0 };
                let stride = depth.next_multiple_of(E::PER_UNIT) + (rows + cols) % 4;
                let (lhs, rhs) = (case.strided(stride), in_panels(case.rhs_dims(), &case.rhs));
                let expected = case.expected(&vec![0.0; (rows - first) * cols], first);
                for isa in Isa::available() {
                    let lhs = Lhs::Rows { data: &lhs, stride };
                    let got = collect(isa, first..rows, lhs, Panels::new(case.rhs_dims(), &rhs), cols);
                    let name = format!("{} {rows} {depth} {cols} on {}", format::<E>(), isa.name());
                    expected.compare(&name, &got);
                }
            }
        }
    }
}

#[test]
fn matmuls_with_rows_equal_their_twin() {
    from_rows::<f32>();
    from_rows::<Bf16>();
}

fn from_columns<E: Element>() {
    for (segments, depth) in [(1, 1), (1, 2), (1, 7), (2, 3), (3, 6), (5, 1), (2, 32), (3, 64), (2, 70)] {
        for cols in [1, 15, 16, 17, 33, 48, 63, 64, 65, 100, 128, 130] {
            for (first, rows) in [(0, 1), (0, 13), (4, 9), (0, 64), (59, 70), (64, 70), (6, 131)] {
                let case = Operands::<E>::random(rows, segments * depth, cols);
                let lhs = transposed(&case.lhs, rows, segments * depth);
                let (left, lhs, left_stride) = Operands::segmented(&lhs, rows, segments, 3);
                let (right, rhs, right_stride) = Operands::segmented(&case.rhs, cols, segments, 0);
                let expected = case.expected(&vec![0.0; (rows - first) * cols], first);
                for isa in Isa::available() {
                    let lhs = Lhs::Columns(Panels::segmented(left, &lhs, segments, left_stride));
                    let rhs = Panels::segmented(right, &rhs, segments, right_stride);
                    let got = collect(isa, first..rows, lhs, rhs, cols);
                    let name = format!(
                        "{} {first}..{rows} {segments} * {depth} {cols} on {}",
                        format::<E>(),
                        isa.name()
                    );
                    expected.compare(&name, &got);
                }
            }
        }
    }
}

#[test]
fn matmuls_with_columns_equal_their_twin() {
    from_columns::<f32>();
    from_columns::<Bf16>();
}

/// Sizes of whole AMX tiles, and their neighbors. Rows are read in place if they start on cache lines.
fn of_tiles<E: Element>() {
    for depth in [31, 32, 64, 70, 128, 256, 258] {
        for (rows, cols) in [(15, 64), (16, 64), (17, 32), (32, 32), (33, 48), (48, 64), (50, 96), (64, 130)]
        {
            let case = Operands::<E>::random(rows, depth, cols);
            let rhs = in_panels(case.rhs_dims(), &case.rhs);
            let before = Random(5).as_f32(rows * cols, 1.0);
            let fresh = case.expected(&vec![0.0; rows * cols], 0);
            let added = case.expected(&before, 0);
            for stride in [depth.next_multiple_of(32), depth.next_multiple_of(32) + 32, depth + 2] {
                let lhs = case.strided(stride);
                for isa in Isa::available() {
                    let name = format!("{} {rows} {depth} {cols} on {}", format::<E>(), isa.name());
                    let (lhs, rhs) = (Lhs::Rows { data: &lhs, stride }, Panels::new(case.rhs_dims(), &rhs));
                    fresh.compare(&name, &collect(isa, 0..rows, lhs, rhs, cols));
                    let mut sums = Buffer::zeroed(rows * cols);
                    sums.copy_from_slice(&before);
                    isa.run(
                        #[inline(always)]
                        || matmul_into(isa, 0..rows, lhs, rhs, &mut sums, cols, Store::Accumulate),
                    );
                    added.compare(&name, &sums);
                }
            }
        }
    }
}

#[test]
fn matmuls_of_whole_tiles_equal_their_twin() {
    of_tiles::<f32>();
    of_tiles::<Bf16>();
}

#[test]
fn a_left_operand_larger_than_the_cache_is_processed_in_groups_of_rows() {
    // With AMX, whole steps: a tile's epilogue also has to wait while the next group is prepared.
    let (depth, rows, cols) = (2112, 131, 17);
    let case = Operands::<Bf16>::random(rows, depth, cols);
    let lhs = transposed(&case.lhs, rows, depth);
    let left = PanelDims { depth, cols: rows };
    let (lhs, rhs) = (in_panels(left, &lhs), in_panels(case.rhs_dims(), &case.rhs));
    let expected = case.expected(&vec![0.0; rows * cols], 0);
    for isa in Isa::available() {
        let lhs = Lhs::Columns(Panels::new(left, &lhs));
        expected.compare(isa.name(), &collect(isa, 0..rows, lhs, Panels::new(case.rhs_dims(), &rhs), cols));
    }
}

#[test]
fn a_row_has_the_same_bits_whatever_rows_share_its_tile() {
    let (rows, depth, cols) = (77, 256, 130);
    let case = Operands::<Bf16>::random(rows, depth, cols);
    let rhs = in_panels(case.rhs_dims(), &case.rhs);
    for stride in [256, 288, 258] {
        let lhs = case.strided(stride);
        for isa in Isa::available() {
            let multiply = |rows| {
                let lhs = Lhs::Rows { data: &lhs, stride };
                collect(isa, rows, lhs, Panels::new(case.rhs_dims(), &rhs), cols)
            };
            let together = multiply(0..rows);
            for (row, together) in together.chunks_exact(cols).enumerate() {
                assert_same_bits(isa.name(), &multiply(row..row + 1), together);
            }
        }
    }
}

/// `matmul_into`, with rows that are `gap` further apart than they are long.
fn into<E: Element>(
    isa: Isa,
    case: &Operands<E>,
    first: usize,
    before: &[f32],
    store: Store,
    gap: usize,
) -> Vec<f32> {
    let stride = case.cols + gap;
    let rows = case.rows - first;
    // The first row starts on a cache line.
    let mut out = Buffer::zeroed((rows - 1) * stride + case.cols);
    out.fill(-7.0);
    for (out, before) in out.chunks_mut(stride).zip(before.chunks_exact(case.cols)) {
        out[..case.cols].copy_from_slice(before);
    }
    let lhs_stride = case.depth.next_multiple_of(E::PER_UNIT);
    let (lhs, rhs) = (case.strided(lhs_stride), in_panels(case.rhs_dims(), &case.rhs));
    let lhs = Lhs::Rows { data: &lhs, stride: lhs_stride };
    let rhs = Panels::new(case.rhs_dims(), &rhs);
    isa.run(
        #[inline(always)]
        || matmul_into(isa, first..case.rows, lhs, rhs, &mut out, stride, store),
    );
    for row in out.chunks(stride) {
        assert!(row[case.cols..].iter().all(|&x| x == -7.0), "elements between rows were overwritten");
    }
    out.chunks(stride).flat_map(|row| &row[..case.cols]).copied().collect()
}

fn are_added_or_not<E: Element>() {
    for (first, rows, depth, cols) in
        [(0, 1, 1, 1), (0, 6, 5, 64), (2, 15, 8, 17), (1, 8, 31, 130), (0, 20, 2, 96)]
    {
        let case = Operands::<E>::random(rows, depth, cols);
        let before = Random(122).as_f32((rows - first) * cols, 3.0);
        for isa in Isa::available() {
            let name = |store: Store| {
                format!("{} {first}..{rows} {depth} {cols}, {store:?}, on {}", format::<E>(), isa.name())
            };
            let nothing = vec![f32::NAN; before.len()];
            for (store, gap) in
                [(Store::Overwrite, cols % 3), (Store::NonTemporal, cols % 3), (Store::NonTemporal, 0)]
            {
                let overwritten = into(isa, &case, first, &nothing, store, gap);
                case.expected(&vec![0.0; before.len()], first).compare(&name(store), &overwritten);
            }
            let added = into(isa, &case, first, &before, Store::Accumulate, cols % 3);
            case.expected(&before, first).compare(&name(Store::Accumulate), &added);
        }
    }
}

#[test]
fn matmul_into_overwrites_or_accumulates() {
    are_added_or_not::<f32>();
    are_added_or_not::<Bf16>();
}

fn of_integers<E: Element>() {
    let mut case = Operands::<E>::random(13, 70, 77);
    let integers = |x: &mut E| *x = E::from_f32((x.to_f32() * 9.0).round());
    case.lhs.iter_mut().chain(&mut case.rhs).for_each(integers);
    let mut expected = case.expected(&[0.0; 13 * 77], 0);
    expected.tolerance.fill(0.0);
    for isa in Isa::available() {
        expected.compare(isa.name(), &into(isa, &case, 0, &[0.0; 13 * 77], Store::Overwrite, 0));
    }
}

#[test]
fn matmuls_of_small_integers_are_exact() {
    of_integers::<f32>();
    of_integers::<Bf16>();
}

fn of_corners<E: Element>() {
    for (depth, cols) in [(1, 1), (2, 64), (7, 65), (8, 20), (11, 150), (12, 128)] {
        let all = Operands::<E>::random(9, 12, 150);
        let corner = Operands::<E> {
            depth,
            cols,
            lhs: all.lhs.chunks_exact(12).flat_map(|row| &row[..depth]).copied().collect(),
            rhs: all.rhs.chunks_exact(150).take(depth).flat_map(|row| &row[..cols]).copied().collect(),
            ..all
        };
        let expected = corner.expected(&vec![0.0; 9 * cols], 0);
        // A unit that is cut in half is included; the left operand is zero there.
        let mut lhs = nans::<E>(9 * 12);
        for (to, row) in lhs.chunks_exact_mut(12).zip(corner.lhs.chunks_exact(depth)) {
            to[..depth].copy_from_slice(row);
            to[depth..depth.next_multiple_of(E::PER_UNIT)].fill(E::default());
        }
        let dims = PanelDims { depth: 12, cols: 150 };
        let panels = in_panels(dims, &all.rhs);
        for isa in Isa::available() {
            let lhs = Lhs::Rows { data: &lhs, stride: 12 };
            let rhs = Panels::new(dims, &panels).corner(depth, cols);
            assert_eq!(rhs.cols(), cols);
            let name = format!("{} corner {depth} {cols} on {}", format::<E>(), isa.name());
            expected.compare(&name, &collect(isa, 0..9, lhs, rhs, cols));
        }
    }
}

#[test]
fn matmuls_with_a_corner_equal_those_with_the_smaller_matrix() {
    of_corners::<f32>();
    of_corners::<Bf16>();
}

#[test]
fn units_may_be_unaligned() {
    // A row of bfloat16 that starts at an odd element is not aligned to units.
    let mut random = Random(123);
    let (row, rhs) = (random.elements::<Bf16>(7, 1.0), random.elements::<Bf16>(4, 1.0));
    let dims = PanelDims { depth: 4, cols: 1 };
    let panels = in_panels(dims, &rhs);
    for isa in Isa::available() {
        for first in 0..=3 {
            let case = Operands {
                rows: 1,
                depth: 4,
                cols: 1,
                lhs: row[first..first + 4].to_vec(),
                rhs: rhs.clone(),
            };
            let lhs = Lhs::Rows { data: &row[first..], stride: 4 };
            let got = collect(isa, 0..1, lhs, Panels::new(dims, &panels), 1);
            case.expected(&[0.0], 0).compare(isa.name(), &got);
        }
    }
}

#[test]
fn subnormal_numbers_are_kept_or_flushed_to_zero() {
    // Subnormal operands, and subnormal products of operands.
    for (a, b) in [(1e-39, 1.0), (1.0, 3e-40), (1e-20, 1e-19), (-1e-45, 1e3), (2e-38, 1.0)] {
        let (rows, depth, cols) = (7, 10, 20);
        let case = Operands::<Bf16> {
            rows,
            depth,
            cols,
            lhs: vec![Bf16::from_f32(a); rows * depth],
            rhs: vec![Bf16::from_f32(b); depth * cols],
        };
        let mut expected = case.expected(&[0.0; 140], 0);
        let largest = f64::from(a.abs().max(b.abs()).max(1.0));
        expected.tolerance.iter_mut().for_each(|tolerance| *tolerance += depth as f64 * TINY * largest);
        for isa in Isa::available() {
            expected.compare(isa.name(), &into(isa, &case, 0, &[0.0; 140], Store::Overwrite, 0));
        }
    }
}

#[test]
fn empty_matmuls() {
    let isa = Isa::detected();
    let panels = Panels::<f32>::new(PanelDims { depth: 0, cols: 3 }, &[]);
    // An empty sum is zero; a matrix without rows or columns has no tiles.
    assert_eq!(collect(isa, 0..2, Lhs::Rows { data: &[], stride: 0 }, panels, 3), [0.0; 6]);
    assert_eq!(collect(isa, 0..0, Lhs::Rows { data: &[], stride: 0 }, panels, 3), [0.0; 0]);
    let panels = Panels::<f32>::new(PanelDims { depth: 2, cols: 0 }, &[]);
    assert_eq!(collect(isa, 0..2, Lhs::Rows { data: &[1.0; 4], stride: 2 }, panels, 0), [0.0; 0]);
}

fn rows_of<E: Element>(rows: usize, len: usize, stride: usize, depth: usize) {
    let dims = PanelDims { depth, cols: 3 };
    let panels = vec![E::default(); dims.len::<E>()];
    let data = vec![E::default(); len];
    let lhs = Lhs::Rows { data: &data, stride };
    collect(Isa::detected(), 0..rows, lhs, Panels::new(dims, &panels), 3);
}

#[test]
#[should_panic(expected = "left operand: rows 0..3 of 5 need 15 elements, got 14")]
fn a_left_operand_that_is_too_short_panics() {
    rows_of::<f32>(3, 14, 5, 5);
}

#[test]
fn a_left_operand_of_the_minimum_length_is_accepted() {
    rows_of::<f32>(3, 15, 5, 5);
    rows_of::<Bf16>(3, 16, 5, 5);
}

#[test]
#[should_panic(expected = "left operand: rows 0..3 of 6 need 16 elements, got 15")]
fn an_incomplete_last_unit_of_bf16_panics() {
    rows_of::<Bf16>(3, 15, 5, 5);
}

fn columns_of(rows: usize, left: (usize, usize), right: (usize, usize)) {
    let data = [0.0f32; 1000];
    let panels = |(segments, depth): (usize, usize)| {
        Panels::segmented(PanelDims { depth, cols: 5 }, &data, segments, depth * 64)
    };
    collect(Isa::detected(), 0..rows, Lhs::Columns(panels(left)), panels(right), 5);
}

#[test]
#[should_panic(expected = "segments and units of the two operands differ")]
fn operands_of_different_depth_panic() {
    columns_of(5, (1, 2), (1, 3));
}

#[test]
#[should_panic(expected = "segments and units of the two operands differ")]
fn operands_with_different_segments_panic() {
    columns_of(5, (2, 3), (1, 3));
}

#[test]
#[should_panic(expected = "left operand: rows 0..6 are outside its 5")]
fn more_rows_than_the_left_operand_has_columns_panic() {
    columns_of(6, (2, 3), (2, 3));
}

#[test]
fn repeated_matmuls_give_the_same_bits() {
    let case = Operands::<f32>::random(13, 33, 77);
    for isa in Isa::available() {
        let zeros = [0.0; 13 * 77];
        let first = into(isa, &case, 0, &zeros, Store::Overwrite, 0);
        assert_same_bits("added to zero", &into(isa, &case, 0, &zeros, Store::Accumulate, 2), &first);
    }
}

/// CI names a set that its emulator must have, or its tests would be skipped.
#[test]
fn the_required_instruction_set_is_there() {
    let Ok(required) = std::env::var("FOLIO_REQUIRE_ISA") else { return };
    let sets: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    assert!(sets.contains(&&*required), "{required} is not among {sets:?}");
}
