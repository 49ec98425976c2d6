//! bfloat16 against its definition: the upper half of f32, rounded to nearest, ties to even.

use folio_kernels::element::{Bf16, Element};
use folio_kernels::rounding::round;

use crate::support::{Random, on_every_isa, wide};

fn all() -> impl Iterator<Item = Bf16> {
    (0..=u32::from(u16::MAX)).map(Bf16::from_bits)
}

fn bits(value: f32) -> u32 {
    Element::to_bits(Bf16::from_f32(value))
}

#[test]
fn every_bf16_survives_a_round_trip_through_f32() {
    for (pattern, value) in all().enumerate() {
        let wide = value.to_f32();
        assert_eq!(wide.to_bits(), (pattern as u32) << 16);
        if wide.is_nan() {
            let back = Bf16::from_f32(wide);
            assert!(back.to_f32().is_nan(), "{pattern:#06x}");
            // The sign and payload are preserved; the NaN becomes quiet.
            assert_eq!(Element::to_bits(back), pattern as u32 | 0x40, "{pattern:#06x}");
        } else {
            assert_eq!(bits(wide), pattern as u32, "{wide:e}");
        }
    }
}

#[test]
fn values_are_rounded_to_nearest_ties_to_even() {
    for (pattern, value) in all().enumerate().filter(|(_, value)| value.to_f32().is_finite()) {
        // The lower half of f32's bits is the position between two neighbors. The neighbor above the largest number is
        // infinity.
        let (down, up) = (pattern as u32, pattern as u32 + 1);
        let even = if down % 2 == 0 { down } else { up };
        let between = |lower: u32| f32::from_bits(value.to_f32().to_bits() | lower);
        for (lower, want) in
            [(1, down), (0x7fff, down), (0x8000, even), (0x8001, up), (0xffff, up), (0x4321, down)]
        {
            assert_eq!(bits(between(lower)), want, "{:e}", between(lower));
        }
    }
}

#[test]
fn the_edges_of_the_format() {
    let greatest = f32::from_bits(0x7f7f_0000);
    let infinite = f32::from_bits(0x7f7f_8000);
    assert_eq!(Bf16::from_f32(f32::from_bits(0x7f7f_7fff)).to_f32(), greatest);
    for (value, want) in [
        (infinite, f32::INFINITY),
        (f32::MAX, f32::INFINITY),
        (f32::INFINITY, f32::INFINITY),
        (f32::MIN_POSITIVE, f32::MIN_POSITIVE),
        (f32::from_bits(0x8000), 0.0),
        (f32::from_bits(0x8001), f32::from_bits(0x1_0000)),
        (0.0, 0.0),
    ] {
        assert_eq!(Bf16::from_f32(value).to_f32().to_bits(), want.to_bits(), "{value:e}");
        assert_eq!(Bf16::from_f32(-value).to_f32().to_bits(), (-want).to_bits(), "{:e}", -value);
    }
    // NaNs whose payload is in the lower half, and NaNs that rounding would overflow.
    for nan in [0x7f80_0001, 0xff80_0001, 0x7fff_ffff, 0xffff_ffff, 0x7f80_8000, 0x7fc0_0000] {
        let rounded = Bf16::from_f32(f32::from_bits(nan));
        assert!(rounded.to_f32().is_nan(), "{nan:#x}");
        assert_eq!(rounded.to_f32().is_sign_negative(), nan >> 31 == 1, "{nan:#x}");
    }
}

#[test]
fn the_unit_roundoff_is_the_maximum_relative_error() {
    let mut worst = 0.0f64;
    for step in 0..=1 << 16 {
        let value = f32::from_bits(1.0f32.to_bits() + (step << 7));
        let error = (f64::from(Bf16::from_f32(value).to_f32()) - f64::from(value)).abs() / f64::from(value);
        worst = worst.max(error);
    }
    // The tie between 1 and its neighbor: half their distance, relative to a number slightly above one.
    let unit = f64::from(Bf16::UNIT_ROUNDOFF);
    assert_eq!(unit, 2.0f64.powi(-8));
    assert_eq!(worst, unit / (1.0 + unit));
    assert_eq!(<f32 as Element>::UNIT_ROUNDOFF, 2.0f32.powi(-24));
}

#[test]
fn f32_is_unchanged() {
    for pattern in [0, 1, 0x8000_0000, 0x3f80_0001, 0x7f7f_ffff, 0x7f80_0000, 0xff80_0001, 0x7fc0_1234] {
        let value = <f32 as Element>::from_bits(pattern);
        assert_eq!(Element::to_bits(f32::from_f32(value.to_f32())), pattern);
    }
}

#[test]
fn every_instruction_set_rounds_rows_alike() {
    for len in (0..=70).chain([1000]) {
        let mut x = Random(95).as_f32(len, 3.0);
        for (place, special) in
            [f32::NAN, f32::INFINITY, f32::from_bits(0x3f80_8000), -0.0].into_iter().enumerate()
        {
            x.iter_mut().skip(place * 7).step_by(29).for_each(|x| *x = special);
        }
        let want: Vec<u32> = x.iter().map(|&x| bits(x)).collect();
        on_every_isa(|isa| {
            let mut got = vec![Bf16::from_f32(7.0); len];
            isa.run(
                #[inline(always)]
                || round(isa, &mut got, &x),
            );
            assert_eq!(got.iter().map(|x| Element::to_bits(*x)).collect::<Vec<_>>(), want, "{}", isa.name());
        });
    }
    // Tests may rely on exact conversion.
    assert_eq!(wide(&[Bf16::from_f32(-1.5)]), [-1.5]);
}
