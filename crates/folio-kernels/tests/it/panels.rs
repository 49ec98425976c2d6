//! Packing against the definition of the layout, for every remainder of columns and depth.

use folio_kernels::element::{Bf16, Element};
use folio_kernels::isa::Isa;
use folio_kernels::panels::{
    PANEL_COLS, PanelDims, Panels, Reuse, pack_both_ways, pack_columns, pack_columns_panel, pack_rows,
    pack_rows_panel,
};

use crate::support::{Random, aligned_nans, as_f32, assert_same_bits, format, in_panels, nans, transposed};

/// One more than two registers of units, in pairs; and two panels and a partial one.
const DEPTHS: std::ops::RangeInclusive<usize> = 1..=65;
const COLS: std::ops::RangeInclusive<usize> = 1..=130;

fn sizes_are_those_of_whole_panels<E: Element>() {
    for depth in 0..10 {
        for cols in (0..=1).chain([63, 64, 65, 128, 129]) {
            let dims = PanelDims { depth, cols };
            let units = depth.div_ceil(E::PER_UNIT);
            let sizes = (dims.units::<E>(), dims.panels(), dims.panel_len::<E>(), dims.len::<E>());
            let panel = units * 64 * E::PER_UNIT;
            assert_eq!(sizes, (units, cols.div_ceil(64), panel, cols.div_ceil(64) * panel), "{dims:?}");
        }
    }
}

#[test]
fn sizes() {
    assert_eq!(PANEL_COLS, 64);
    sizes_are_those_of_whole_panels::<f32>();
    sizes_are_those_of_whole_panels::<Bf16>();
}

/// `matrix` (rows, cols) with rows that are `stride` apart, NaN between them, and nothing after the last.
fn strided<E: Element>(matrix: &[E], cols: usize, stride: usize) -> Vec<E> {
    let mut strided = nans(matrix.len() / cols * stride);
    for (to, row) in strided.chunks_exact_mut(stride).zip(matrix.chunks_exact(cols)) {
        to[..cols].copy_from_slice(row);
    }
    strided.truncate(strided.len() - (stride - cols));
    strided
}

fn pack_every_size<S: Element, E: Element>() {
    let source = Random(111).elements::<S>(65 * 130, 3.0);
    for isa in Isa::available() {
        for depth in DEPTHS {
            for cols in COLS.filter(|cols| depth <= 36 || cols % 7 == 1) {
                let dims = PanelDims { depth, cols };
                let case = format!("{} to {} {dims:?} on {}", format::<S>(), format::<E>(), isa.name());
                let matrix = &source[..depth * cols];
                let converted: Vec<E> = as_f32(matrix).iter().map(|&x| E::from_f32(x)).collect();
                let want = in_panels(dims, &converted);
                let gap = (depth + cols) % 3;
                let rows = strided(matrix, cols, cols + gap);
                let columns = strided(&transposed(matrix, depth, cols), depth, depth + gap);
                // Elements after the panels must not change.
                let mut out = nans::<E>(want.len() + 3);
                isa.run(
                    #[inline(always)]
                    || pack_rows(isa, dims, &mut out, &rows, cols + gap),
                );
                assert_same_bits(&format!("rows of {case}"), &out[..want.len()], &want);
                assert!(out[want.len()..].iter().all(|x| x.to_f32().is_nan()), "{case}");
                out = nans(want.len() + 3);
                isa.run(
                    #[inline(always)]
                    || pack_columns(isa, dims, &mut out, &columns, depth + gap),
                );
                assert_same_bits(&format!("columns of {case}"), &out[..want.len()], &want);
                assert!(out[want.len()..].iter().all(|x| x.to_f32().is_nan()), "{case}");
            }
        }
    }
}

#[test]
fn rows_and_columns_of_f32_are_packed() {
    pack_every_size::<f32, f32>();
}

#[test]
fn rows_and_columns_of_f32_are_packed_in_bf16() {
    pack_every_size::<f32, Bf16>();
}

#[test]
fn rows_and_columns_of_bf16_are_packed() {
    pack_every_size::<Bf16, Bf16>();
}

fn pack_panel_by_panel<E: Element>() {
    let dims = PanelDims { depth: 21, cols: 150 };
    let matrix = Random(112).elements::<f32>(dims.depth * dims.cols, 1.0);
    let columns = transposed(&matrix, dims.depth, dims.cols);
    let (mut all, mut all_columns) = (nans::<E>(dims.len::<E>()), nans::<E>(dims.len::<E>()));
    let isa = Isa::detected();
    pack_rows(isa, dims, &mut all, &matrix, dims.cols);
    pack_columns(isa, dims, &mut all_columns, &columns, dims.depth);
    for (panel, want) in all.chunks_exact(dims.panel_len::<E>()).enumerate() {
        let (mut rows, mut cols) = (nans::<E>(want.len()), nans::<E>(want.len()));
        pack_rows_panel(isa, dims, panel, &mut rows, &matrix, dims.cols, Reuse::Temporal);
        pack_columns_panel(isa, dims, panel, &mut cols, &columns, dims.depth);
        assert_same_bits("a panel of rows", &rows, want);
        assert_same_bits("a panel of columns", &cols, want);
    }
    assert_same_bits("rows and columns", &all_columns, &all);
}

#[test]
fn panels_may_be_packed_one_by_one() {
    pack_panel_by_panel::<f32>();
    pack_panel_by_panel::<Bf16>();
}

fn pack_at_once<E: Element>() {
    for (rows, cols) in [(1, 1), (1, 130), (64, 64), (65, 63), (21, 150), (130, 7), (129, 200)] {
        let matrix = Random(113).elements::<f32>(rows * cols, 1.0);
        let (of_rows, of_columns) = (PanelDims { depth: rows, cols }, PanelDims { depth: cols, cols: rows });
        let (rows_len, columns_len) = (of_rows.len::<E>(), of_columns.len::<E>());
        for isa in Isa::available() {
            let case = format!("{} ({rows}, {cols}) on {}", format::<E>(), isa.name());
            let (mut by_rows, mut by_columns) = (nans::<E>(rows_len), nans::<E>(columns_len));
            let (mut want_rows, mut want_columns) = (nans::<E>(rows_len), nans::<E>(columns_len));
            isa.run(
                #[inline(always)]
                || {
                    pack_rows(isa, of_rows, &mut want_rows, &matrix, cols);
                    pack_columns(isa, of_columns, &mut want_columns, &matrix, cols);
                    pack_both_ways(
                        isa,
                        (rows, cols),
                        Some(&mut by_rows),
                        Some(&mut by_columns),
                        &matrix,
                        Reuse::Temporal,
                    );
                },
            );
            assert_same_bits(&format!("rows of {case}"), &by_rows, &want_rows);
            assert_same_bits(&format!("columns of {case}"), &by_columns, &want_columns);
            let (mut alone, mut other) = (aligned_nans(rows_len), aligned_nans(columns_len));
            pack_both_ways(isa, (rows, cols), Some(&mut alone), None, &matrix, Reuse::NonTemporal);
            pack_both_ways(isa, (rows, cols), None, Some(&mut other), &matrix, Reuse::NonTemporal);
            assert_same_bits(&format!("rows alone of {case}"), &alone, &want_rows);
            assert_same_bits(&format!("columns alone of {case}"), &other, &want_columns);
        }
    }
}

#[test]
fn a_matrix_and_its_transpose_may_be_packed_at_once() {
    pack_at_once::<f32>();
    pack_at_once::<Bf16>();
}

#[test]
fn an_empty_matrix_has_no_elements() {
    let dims = PanelDims { depth: 0, cols: 70 };
    pack_rows::<f32, f32>(Isa::detected(), dims, &mut [], &[], 70);
    pack_columns::<f32, Bf16>(Isa::detected(), dims, &mut [], &[], 0);
    assert_eq!(Panels::<f32>::new(dims, &[]).cols(), 70);
}

#[test]
#[should_panic(
    expected = "2 segments of PanelDims { depth: 3, cols: 5 } with stride 200 need 392 elements, got 391"
)]
fn segments_that_do_not_fit_panic() {
    Panels::segmented(PanelDims { depth: 3, cols: 5 }, &[0.0f32; 391], 2, 200);
}

#[test]
fn segments_that_just_fit_are_accepted() {
    Panels::segmented(PanelDims { depth: 3, cols: 5 }, &[0.0f32; 392], 2, 200);
}

#[test]
#[should_panic(expected = "a stride of 129 elements is not divisible by 2")]
fn segments_that_cut_units_panic() {
    Panels::segmented(PanelDims { depth: 1, cols: 5 }, &[Bf16::default(); 400], 2, 129);
}

#[test]
#[should_panic(expected = "a corner of (3, 9) is outside")]
fn a_corner_wider_than_the_matrix_panics() {
    Panels::new(PanelDims { depth: 3, cols: 8 }, &[0.0f32; 192]).corner(3, 9);
}

#[test]
#[should_panic(expected = "a corner of (4, 8) is outside")]
fn a_corner_deeper_than_the_matrix_panics() {
    Panels::new(PanelDims { depth: 3, cols: 8 }, &[0.0f32; 192]).corner(4, 8);
}
