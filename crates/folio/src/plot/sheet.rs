//! The paper and the pen: SVG and PNG through the backends of plotters.
//!
//! The backends take whole pixels. The drawing is therefore made on a sheet `SCALE` times the size of the figure: the
//! SVG shows that sheet through its `viewBox`, and the PNG averages each square of `SCALE` by `SCALE` pixels, which
//! smooths every edge.

use std::error::Error as StdError;
use std::io::Cursor;
use std::sync::Once;

use plotters::backend::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Rectangle, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{
    Color, FontDesc, FontFamily, FontStyle, FontTransform, RGBColor, TextStyle, WHITE, register_font,
};

use crate::error::{Error, Result};
use crate::files::GENERATOR;

/// The figure, in pixels; every position and length given to a `Sheet` is in these units.
pub(super) const WIDTH: u32 = 1200;
pub(super) const HEIGHT: u32 = 900;

/// Pixels of the sheet to a side of one pixel of the figure. Three make smooth lines; four cost twice the memory.
const SCALE: u32 = 3;

/// An SVG viewer resolves this generic family to a font of its own; ours is registered under the same name.
const FONT_FAMILY: &str = "sans-serif";

/// What drawing on the backend `DB` comes to.
pub(super) type DrawResult<T, DB> =
    std::result::Result<T, DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

/// A position in the figure.
pub(super) type Spot = (f64, f64);

/// A position on the sheet.
type Pixel = (i32, i32);

/// Which point of a text lies on the spot given for it. Vertically it is the middle.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Left,
    Center,
    Right,
    /// The middle of a text that runs upwards.
    Upwards,
}

/// How a text looks.
#[derive(Clone, Copy)]
pub(super) struct Lettering {
    pub(super) size: f64,
    pub(super) color: RGBColor,
    pub(super) anchor: Anchor,
}

/// A white sheet of paper.
pub(super) struct Sheet<DB: DrawingBackend> {
    area: DrawingArea<DB, Shift>,
    medium: Medium,
}

/// What the backend makes of a line and of a text.
#[derive(Clone, Copy, PartialEq)]
enum Medium {
    Vectors,
    Pixels,
}

/// Share of its size by which the bitmap draws a text above the spot for its middle. Plotters puts the baseline
/// size * (1/2 - 1/2.48) below the spot, and our digits are size * 0.6 high.
const PIXEL_TEXT_RISE: f64 = 0.3 - (0.5 - 0.5 / 1.24);

impl<DB: DrawingBackend> Sheet<DB> {
    fn new(backend: DB, medium: Medium) -> DrawResult<Self, DB> {
        register_embedded_font();
        let area = backend.into_drawing_area();
        area.fill(&WHITE)?;
        Ok(Self { area, medium })
    }

    pub(super) fn line(&self, spots: &[Spot], color: RGBColor, width: f64) -> DrawResult<(), DB> {
        if spots.len() < 2 {
            return Ok(());
        }
        let path: Vec<Pixel> = spots.iter().copied().map(to_sheet).collect();
        if self.medium == Medium::Vectors {
            return self.area.draw(&PathElement::new(path, color.stroke_width(length_to_sheet(width))));
        }
        path.windows(2).try_for_each(|ends| self.stroke([ends[0], ends[1]], color, width))
    }

    /// A straight line of pixels with round ends. The bitmap of plotters would make one polygon of a whole line, whose
    /// sharp turns grow horns.
    fn stroke(&self, [start, end]: [Pixel; 2], color: RGBColor, width: f64) -> DrawResult<(), DB> {
        let radius = width * f64::from(SCALE) / 2.0;
        let (dx, dy) = (f64::from(end.0 - start.0), f64::from(end.1 - start.1));
        // Of the way from start to end, the share at which the line is nearest to a pixel.
        let nearest = |x: i32, y: i32| {
            let along = f64::from(x - start.0) * dx + f64::from(y - start.1) * dy;
            (along / (dx * dx + dy * dy).max(1.0)).clamp(0.0, 1.0)
        };
        // Walks along the longer side; across it, the stroke reaches at most sqrt(2) times its radius.
        let reach = (radius * std::f64::consts::SQRT_2).ceil() as i32;
        let is_steep = dy.abs() > dx.abs();
        let (from, to, across, slope) = if is_steep {
            (start.1, end.1, start.0, dx / dy)
        } else {
            (start.0, end.0, start.1, if dx == 0.0 { 0.0 } else { dy / dx })
        };
        for i in from.min(to) - reach..=from.max(to) + reach {
            let middle =
                across + (f64::from(i.clamp(from.min(to), from.max(to)) - from) * slope).round() as i32;
            for j in middle - reach..=middle + reach {
                let (x, y) = if is_steep { (j, i) } else { (i, j) };
                let share = nearest(x, y);
                let (far_x, far_y) =
                    (f64::from(x - start.0) - share * dx, f64::from(y - start.1) - share * dy);
                if far_x * far_x + far_y * far_y <= radius * radius {
                    self.area.draw_pixel((x, y), &color)?;
                }
            }
        }
        Ok(())
    }

    /// A disc with a white rim, so that it stands out from its own line.
    pub(super) fn dot(&self, center: Spot, color: RGBColor, radius: f64) -> DrawResult<(), DB> {
        let center = to_sheet(center);
        self.area.draw(&Circle::new(center, length_to_sheet(radius + 1.2) as i32, WHITE.filled()))?;
        self.area.draw(&Circle::new(center, length_to_sheet(radius) as i32, color.filled()))
    }

    /// White, and nearly opaque: what lies below remains as a hint.
    pub(super) fn veil(&self, corners: [Spot; 2]) -> DrawResult<(), DB> {
        self.area.draw(&Rectangle::new(corners.map(to_sheet), WHITE.mix(0.85).filled()))
    }

    pub(super) fn text(&self, text: &str, spot: Spot, lettering: Lettering) -> DrawResult<(), DB> {
        let drop = if self.medium == Medium::Pixels { PIXEL_TEXT_RISE * lettering.size } else { 0.0 };
        let spot = match lettering.anchor {
            Anchor::Upwards => (spot.0 + drop, spot.1),
            _ => (spot.0, spot.1 + drop),
        };
        self.area.draw(&Text::new(text, to_sheet(spot), lettering.style()))
    }

    /// In the embedded font, which is wider than what most viewers of the SVG will choose.
    pub(super) fn text_width(&self, text: &str, lettering: Lettering) -> DrawResult<f64, DB> {
        let (width, _) = self.area.estimate_text_size(text, &lettering.style())?;
        Ok(f64::from(width) / f64::from(SCALE))
    }
}

impl Lettering {
    fn style(self) -> TextStyle<'static> {
        let (h_pos, transform) = match self.anchor {
            Anchor::Left => (HPos::Left, FontTransform::None),
            Anchor::Center => (HPos::Center, FontTransform::None),
            Anchor::Right => (HPos::Right, FontTransform::None),
            Anchor::Upwards => (HPos::Center, FontTransform::Rotate270),
        };
        let size = self.size * f64::from(SCALE);
        let font = FontDesc::new(FontFamily::Name(FONT_FAMILY), size, FontStyle::Normal);
        let color = self.color.to_backend_color();
        TextStyle { font: font.transform(transform), color, pos: Pos::new(h_pos, VPos::Center) }
    }
}

/// What draws on a sheet, whichever its backend: a trait, as no closure can be generic over `DB`.
pub(super) trait Figure {
    fn draw<DB: DrawingBackend>(&self, sheet: &Sheet<DB>) -> DrawResult<(), DB>;
}

/// The figure as an SVG document.
pub(super) fn svg(figure: &impl Figure) -> Result<String> {
    let (width, height) = (WIDTH * SCALE, HEIGHT * SCALE);
    let mut document = String::new();
    render(SVGBackend::with_string(&mut document, (width, height)), Medium::Vectors, figure)?;
    // The sheet is shown at the size of the figure. Round joins keep the spikes of noisy lines from growing horns.
    let sheet = format!(r#"width="{width}" height="{height}""#);
    let shown = format!(r#"width="{WIDTH}" height="{HEIGHT}" stroke-linejoin="round""#);
    Ok(format!("<!-- {GENERATOR} -->\n{}", document.replacen(&sheet, &shown, 1)))
}

/// The figure as a PNG file.
pub(super) fn png(figure: &impl Figure) -> Result<Vec<u8>> {
    let (width, height) = (WIDTH * SCALE, HEIGHT * SCALE);
    let mut sheet = vec![0; (width * height * 3) as usize];
    render(BitMapBackend::with_buffer(&mut sheet, (width, height)), Medium::Pixels, figure)?;
    let mut file = Cursor::new(Vec::new());
    let mut encoder = png::Encoder::new(&mut file, WIDTH, HEIGHT);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.add_text_chunk("Software".to_owned(), GENERATOR.to_owned()).map_err(failed)?;
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(&shrunk(&sheet)).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(file.into_inner())
}

fn render<DB: DrawingBackend>(backend: DB, medium: Medium, figure: &impl Figure) -> Result<()> {
    let sheet = Sheet::new(backend, medium).map_err(failed)?;
    figure.draw(&sheet).map_err(failed)?;
    sheet.area.present().map_err(failed)
}

fn failed(error: impl StdError) -> Error {
    Error::Plot { reason: error.to_string() }
}

fn register_embedded_font() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        let registered = register_font(FONT_FAMILY, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
        assert!(registered.is_ok(), "the embedded font is not a TrueType font");
    });
}

/// The nearest length for which a vertical or horizontal line of width 1 covers whole pixels of the PNG.
pub(super) fn crisp(length: f64) -> f64 {
    length.floor() + f64::from((SCALE - 1) / 2) / f64::from(SCALE)
}

fn to_sheet(spot: Spot) -> Pixel {
    let scaled = |length: f64| (length * f64::from(SCALE)).round() as i32;
    (scaled(spot.0), scaled(spot.1))
}

fn length_to_sheet(length: f64) -> u32 {
    (length * f64::from(SCALE)).round() as u32
}

/// The mean of each square of `SCALE` by `SCALE` pixels, for a sheet of red, green and blue bytes.
fn shrunk(sheet: &[u8]) -> Vec<u8> {
    let (scale, row_len) = (SCALE as usize, (WIDTH * SCALE * 3) as usize);
    let mut pixels = Vec::with_capacity(sheet.len() / (scale * scale));
    for rows in sheet.chunks_exact(row_len * scale) {
        for x in 0..WIDTH as usize {
            for channel in 0..3 {
                let at =
                    |dx: usize, dy: usize| u32::from(rows[dy * row_len + (x * scale + dx) * 3 + channel]);
                let sum: u32 = (0..scale).flat_map(|dy| (0..scale).map(move |dx| at(dx, dy))).sum();
                pixels.push((sum / (SCALE * SCALE)) as u8);
            }
        }
    }
    pixels
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Strokes between all pairs of some pixels, so that every slope and both directions occur.
    struct Fan;

    const HUB: Spot = (100.0, 100.0);
    const RIM: [Spot; 5] = [(140.0, 100.0), (100.0, 60.0), (70.0, 130.0), (107.0, 151.0), (60.0, 95.0)];

    impl Figure for Fan {
        fn draw<DB: DrawingBackend>(&self, sheet: &Sheet<DB>) -> DrawResult<(), DB> {
            RIM.iter().try_for_each(|&end| sheet.line(&[HUB, end], RGBColor(0, 0, 0), 4.0))
        }
    }

    #[test]
    fn strokes_have_their_width_and_round_ends() {
        let mut reader = png::Decoder::new(Cursor::new(png(&Fan).unwrap())).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        // Of the pixel's middle, in the units of the figure.
        let middle = |i: usize| i as f64 + f64::from(SCALE - 1) / 2.0 / f64::from(SCALE);
        for (x, y) in (40..170).flat_map(|x| (40..170).map(move |y| (x, y))) {
            let spot = (middle(x), middle(y));
            let nearest = RIM.iter().map(|&end| distance(spot, HUB, end)).fold(f64::INFINITY, f64::min);
            let ink = 255 - pixels[(y * WIDTH as usize + x) * 3];
            // The squares of the sheet that make a pixel are within sqrt(2) / 3 < 1/2 of its middle.
            if nearest < 2.0 - 0.5 {
                assert_eq!(ink, 255, "of ({x}, {y}), {nearest} from a line of half width 2");
            }
            if nearest > 2.0 + 0.5 {
                assert_eq!(ink, 0, "of ({x}, {y}), {nearest} from a line of half width 2");
            }
        }
    }

    /// From a spot to a segment, found by trying many of its points.
    fn distance(spot: Spot, start: Spot, end: Spot) -> f64 {
        let shares = (0..=400).map(|i| f64::from(i) / 400.0);
        let at = |share: f64| (start.0 + share * (end.0 - start.0), start.1 + share * (end.1 - start.1));
        shares.map(at).map(|(x, y)| (x - spot.0).hypot(y - spot.1)).fold(f64::INFINITY, f64::min)
    }
}
