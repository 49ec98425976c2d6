//! Converts the content of a file to plain text: decompressed UTF-8 without a byte-order mark, with LF line endings. For
//! other formats the error says what the file is and how to convert it.

use std::fmt::Display;
use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::sources::{STDIN, shell_quoted};
use super::unusable;
use crate::error::Result;
use crate::machine::available_memory;

const GZIP: &[u8] = b"\x1f\x8b";

/// File formats: signature, its offset, name, and a command that converts it to text, where `{}` is the file.
const KINDS: [(&[u8], usize, &str, &str); 11] = [
    (b"PK\x03\x04", 0, "a zip archive (so are .docx, .odt and .epub)", "unzip it: unzip {}"),
    (b"%PDF-", 0, "a PDF", "extract its text: pdftotext {}"),
    (b"\xfd7zXZ\0", 0, "compressed with xz", "decompress it: xz -dk {}"),
    (b"\x28\xb5\x2f\xfd", 0, "compressed with zstd", "decompress it: zstd -dk {}"),
    (b"1AY&SY", 4, "compressed with bzip2", "decompress it: bzip2 -dk {}"),
    (b"7z\xbc\xaf\x27\x1c", 0, "a 7z archive", "unpack it: 7z x {}"),
    (b"ustar", 257, "a tar archive", "unpack it: tar -xf {}"),
    (b"{\\rtf", 0, "RTF", "save it as plain text: soffice --convert-to txt:Text {}"),
    (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        0,
        "an old Office document",
        "save it as plain text: soffice --convert-to txt:Text {}",
    ),
    (b"PAR1", 0, "a Parquet table", "write its column of text to a file first"),
    (b"SQLite format 3\0", 0, "an SQLite database", "write its column of text to a file first"),
];

/// The treatment of CRLF and lone CR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineEndings {
    /// Converted to LF, as in Python's text mode.
    Lf,
    /// Kept.
    Kept,
}

/// A converted text.
pub(super) struct Plain {
    pub(super) text: String,
    /// The number of line endings that were converted to LF.
    pub(super) converted_endings: usize,
}

/// Converts the content of a file; `path` is [`STDIN`] or its path.
///
/// # Errors
/// [`crate::error::Error::Corpus`] if it is not text.
pub(super) fn plain(path: &Path, mut bytes: Vec<u8>, endings: LineEndings) -> Result<Plain> {
    if bytes.starts_with(GZIP) {
        bytes = unpacked(path, &bytes)?;
    }
    // First of all, since some of these formats can be valid UTF-8.
    let known = KINDS
        .iter()
        .find(|(magic, offset, ..)| bytes.get(*offset..).is_some_and(|bytes| bytes.starts_with(magic)));
    if let Some((_, _, what, way_out)) = known {
        let way_out = way_out.replace("{}", &named(path));
        return Err(unusable(path, format!("it is {what}, not text; {way_out}")));
    }
    let mut text = utf8(path, bytes)?;
    check_nuls(path, text.as_bytes())?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    let (text, converted_endings) = match endings {
        LineEndings::Lf => with_lf(text),
        LineEndings::Kept => (text, 0),
    };
    Ok(Plain { text, converted_endings })
}

/// Decodes UTF-8 without any changes.
///
/// # Errors
/// [`crate::error::Error::Corpus`] if they are not UTF-8.
pub(super) fn utf8(path: &Path, bytes: Vec<u8>) -> Result<String> {
    let wide = wide_encoding(&bytes);
    if let Some((encoding, mark)) = wide {
        let mark = if mark { "" } else { " without a byte-order mark" };
        let way_out = converted(path, encoding);
        return Err(unusable(path, format!("it is {encoding}{mark}, not UTF-8; convert it: {way_out}")));
    }
    String::from_utf8(bytes).map_err(|error| unusable(path, not_utf8(path, error.as_bytes())))
}

/// Decompresses gzip.
fn unpacked(path: &Path, packed: &[u8]) -> Result<Vec<u8>> {
    let room = available_memory().unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    let unpacked = MultiGzDecoder::new(packed).take(room).read_to_end(&mut bytes);
    if let Err(error) = unpacked {
        let way_out = format!("fetch it again; gzip -t {} tests it", named(path));
        return Err(unusable(
            path,
            format!("it is compressed with gzip, and damaged or cut off ({error}); {way_out}"),
        ));
    }
    if bytes.len() as u64 == room {
        return Err(unusable(
            path,
            format!("decompressed, it is larger than the {room} bytes of free memory"),
        ));
    }
    Ok(bytes)
}

/// Converts line endings to LF, and counts the conversions.
fn with_lf(text: String) -> (String, usize) {
    if !text.contains('\r') {
        return (text, 0);
    }
    let mut converted = 0;
    let mut out = String::with_capacity(text.len());
    let mut parts = text.split('\r');
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        converted += 1;
        out.push('\n');
        out.push_str(part.strip_prefix('\n').unwrap_or(part));
    }
    (out, converted)
}

/// Detects UTF-16 and UTF-32: the encoding, and whether there is a byte-order mark.
fn wide_encoding(bytes: &[u8]) -> Option<(&'static str, bool)> {
    match bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => return Some(("UTF-32", true)),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return Some(("UTF-16", true)),
        _ => {}
    }
    let sample = &bytes[..bytes.len().min(1 << 16) & !3];
    let quads = sample.len() / 4;
    let mut nuls = [0; 4];
    for (index, _) in sample.iter().enumerate().filter(|(_, byte)| **byte == 0) {
        nuls[index % 4] += 1;
    }
    let [first, second, third, fourth] = nuls;
    if quads == 0 || nuls == [0; 4] {
        return None;
    }
    // UTF-32: the highest byte is always 0, and the next one is 0 except for rare characters.
    match nuls {
        _ if fourth == quads && third * 2 >= quads && first * 2 < quads => {
            return Some(("UTF-32LE", false));
        }
        _ if first == quads && second * 2 >= quads && fourth * 2 < quads => {
            return Some(("UTF-32BE", false));
        }
        _ => {}
    }
    // UTF-16: the high byte is 0 for spaces, digits and line endings in every script. Requires many of them, since any text
    // may contain a stray NUL.
    let (even, odd) = (first + third, second + fourth);
    let least = quads / 25;
    let (encoding, count, unit): (_, _, fn([u8; 2]) -> u16) = match (odd > 20 * even, even > 20 * odd) {
        (true, _) => ("UTF-16LE", odd, u16::from_le_bytes),
        (_, true) => ("UTF-16BE", even, u16::from_be_bytes),
        _ => return None,
    };
    let (units, _) = sample.as_chunks::<2>();
    let broken =
        char::decode_utf16(units.iter().map(|&bytes| unit(bytes))).filter(|unit| unit.is_err()).count();
    // The sample may end inside a surrogate pair.
    (count > least && broken <= 1).then_some((encoding, false))
}

/// Refuses text with more than 1 % NULs, or with a long run of them.
fn check_nuls(path: &Path, bytes: &[u8]) -> Result<()> {
    /// A run this long is typical of a file that was not completely written.
    const RUN: usize = 64;
    let Some(first) = bytes.iter().position(|&byte| byte == 0) else { return Ok(()) };
    let count = bytes.iter().filter(|&&byte| byte == 0).count();
    if count * 100 <= bytes.len() && !bytes.windows(RUN).any(|run| run == [0; RUN]) {
        return Ok(());
    }
    let (file, reason) =
        (named(path), format!("{count} of its {} bytes are NUL, the first at offset {first}", bytes.len()));
    Err(unusable(
        path,
        format!(
            "{reason}; fetch it again, or remove them: tr -d '\\000' < {file} > {}",
            beside(path, ".txt")
        ),
    ))
}

/// Describes content that is not UTF-8, with a command that converts it.
fn not_utf8(path: &Path, bytes: &[u8]) -> String {
    let (mut offset, mut broken, mut broken_bytes, mut characters) = (None, 0, 0, 0);
    let (mut done, mut ends_broken) = (0, false);
    for chunk in bytes.utf8_chunks() {
        // Counts multi-byte characters by their first byte, which begins with the bits 11.
        characters += chunk.valid().bytes().filter(|byte| byte & 0xC0 == 0xC0).count();
        done += chunk.valid().len();
        if !chunk.invalid().is_empty() {
            offset.get_or_insert(done);
            broken += 1;
            broken_bytes += chunk.invalid().len();
            done += chunk.invalid().len();
            let error = std::str::from_utf8(chunk.invalid()).err();
            ends_broken = done == bytes.len() && error.is_some_and(|error| error.error_len().is_none());
        }
    }
    let offset = offset.unwrap_or_default();
    let at = format!("it is not UTF-8 at byte offset {offset} (0x{:02x})", bytes[offset]);
    let controls = bytes.iter().filter(|byte| matches!(byte, 0..=8 | 14..=26 | 28..=31)).count();
    let high = bytes.iter().filter(|byte| **byte >= 0x80).count();
    if controls * 100 > bytes.len() {
        return format!(
            "{at}, and one byte in {} is a control character: it is not text; give a text file",
            bytes.len() / controls
        );
    }
    if ends_broken && broken == 1 && characters > 0 {
        let command = format!("head -c {offset} {} > {}", named(path), beside(path, ".cut"));
        return format!(
            "{at}: its last character is incomplete; fetch it again if it was cut off, or leave it out: {command}"
        );
    }
    if characters > broken {
        let command = format!("iconv -c -f UTF-8 -t UTF-8 {} > {}", named(path), beside(path, ".utf8"));
        return format!(
            "{at}, and {broken_bytes} bytes are invalid in all; fetch it again, or drop these: {command}"
        );
    }
    let cut_off = if ends_broken && broken == 1 { "fetch it again if it was cut off, or " } else { "" };
    if high * 3 < bytes.len() {
        return format!("{at}; {cut_off}convert it, for example with {}", converted(path, "WINDOWS-1252"));
    }
    format!(
        "{at}; {cut_off}convert it from its encoding, which {} may know: {}",
        format_args!("`file {}`", named(path)),
        converted(path, "ENCODING")
    )
}

/// The command that converts a file.
fn converted(path: &Path, encoding: &str) -> String {
    format!("iconv -f {encoding} -t UTF-8 {} > {}", named(path), beside(path, ".utf8"))
}

/// The name of a file in a command; for stdin a placeholder.
fn named(path: &Path) -> String {
    if path == Path::new(STDIN) { "FILE".to_owned() } else { shell_quoted(&path.display().to_string()) }
}

/// The name of the output file of a command: the input with another ending.
fn beside(path: &Path, ending: impl Display) -> String {
    let path = if path == Path::new(STDIN) { Path::new("FILE") } else { path };
    shell_quoted(&format!("{}{ending}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Plain> {
        plain(Path::new("a play.txt"), bytes.to_vec(), LineEndings::Lf)
    }

    #[track_caller]
    fn check_refused(bytes: &[u8], expected: &[&str], unexpected: &str) {
        let Err(error) = read(bytes) else { panic!("{expected:?} is read") };
        let message = error.to_string();
        for part in expected.iter().chain(&["the text a play.txt: "]) {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
        assert!(
            !message.contains('\n') && (unexpected.is_empty() || !message.contains(unexpected)),
            "{message:?}"
        );
    }

    fn packed(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn line_endings_of_all_systems_become_lf() {
        let Plain { text, converted_endings } = read("a\r\nb\rc\n\r\r\n\u{feff}é\r".as_bytes()).unwrap();
        assert_eq!((text.as_str(), converted_endings), ("a\nb\nc\n\n\n\u{feff}é\n", 5));
        let Plain { text, converted_endings } = read(b"a\nb").unwrap();
        assert_eq!((text.as_str(), converted_endings), ("a\nb", 0));
        let kept = plain(Path::new("x"), b"a\r\nb\r".to_vec(), LineEndings::Kept).unwrap();
        assert_eq!((kept.text.as_str(), kept.converted_endings), ("a\r\nb\r", 0));
    }

    #[test]
    fn gzip_is_unpacked_by_its_content() {
        // The output of `cat a.gz b.gz`, with a byte-order mark and CRLF inside.
        let twice = [packed("\u{feff}Enter\r\n".as_bytes()), packed("Hamlet é".as_bytes())].concat();
        assert_eq!(read(&twice).unwrap().text, "Enter\nHamlet é");
        let whole = packed(&b"Exeunt. ".repeat(100));
        check_refused(
            &whole[..whole.len() - 9],
            &["compressed with gzip", "damaged or cut off", "gzip -t 'a play.txt'"],
            "iconv",
        );
        // The decompressed content is checked, too.
        check_refused(&packed(b"%PDF-1.4"), &["it is a PDF"], "iconv");
    }

    #[test]
    fn other_formats_are_named_with_a_command() {
        let mut tar = vec![b'a'; 257];
        tar.extend_from_slice(b"ustar\0");
        let files: [(&[u8], &[&str]); 9] = [
            (b"PK\x03\x04rest", &["zip archive", ".docx", "unzip 'a play.txt'"]),
            (b"%PDF-1.7\n", &["a PDF", "pdftotext 'a play.txt'"]),
            (b"\xfd7zXZ\0\0", &["with xz", "xz -dk 'a play.txt'"]),
            (b"\x28\xb5\x2f\xfd\0", &["with zstd", "zstd -dk"]),
            (b"BZh91AY&SY\0", &["with bzip2", "bzip2 -dk"]),
            (&tar, &["tar archive", "tar -xf"]),
            (b"{\\rtf1 text}", &["is RTF", "plain text"]),
            (b"PAR1\x15", &["Parquet"]),
            (b"\x7fELF\x02\x01\x01\0\0\0\xff\0\x03", &["is not text", "control character"]),
        ];
        for (bytes, expected) in files {
            check_refused(bytes, expected, "iconv");
        }
    }

    #[test]
    fn many_nuls_are_refused_and_a_stray_one_is_not() {
        let text = "To be, or not to be. ".repeat(20);
        check_refused(
            &[text.as_bytes(), &[0; 100]].concat(),
            &["100 of its 520 bytes are NUL", "offset 420", "tr -d"],
            "iconv",
        );
        let hole = [text.repeat(50).as_bytes(), &[0; 64], b"end"].concat();
        check_refused(&hole, &["64 of its", "fetch it again"], "iconv");
        assert!(read(format!("{text}\0{text}").as_bytes()).is_ok());
    }

    #[test]
    fn utf16_and_utf32_are_recognized() {
        let units = |text: &str, little: bool, wide: bool| -> Vec<u8> {
            let bytes = |unit: u32, size: usize| {
                let bytes = unit.to_be_bytes()[4 - size..].to_vec();
                if little { bytes.into_iter().rev().collect() } else { bytes }
            };
            if wide {
                text.chars().flat_map(|c| bytes(u32::from(c), 4)).collect()
            } else {
                text.encode_utf16().flat_map(|unit| bytes(u32::from(unit), 2)).collect()
            }
        };
        for text in [
            "Exit, pursued by a bear.\n",
            "Выходит, преследуемый медведем.\n",
            "他被熊追赶着下场。\n",
            "👧 ran\n",
        ] {
            let text = text.repeat(3);
            for (little, wide, name) in [
                (true, false, "UTF-16LE"),
                (false, false, "UTF-16BE"),
                (true, true, "UTF-32LE"),
                (false, true, "UTF-32BE"),
            ] {
                let command = format!("iconv -f {name} -t UTF-8 'a play.txt' > 'a play.txt.utf8'");
                check_refused(
                    &units(&text, little, wide),
                    &[name, "without a byte-order mark", &command],
                    "NUL",
                );
                let mark = units("\u{feff}", little, wide);
                let marked = [mark, units(&text, little, wide)].concat();
                check_refused(
                    &marked,
                    &[&format!("it is {}, not UTF-8", &name[..6]), "iconv -f UTF-"],
                    "without",
                );
            }
        }
    }

    #[test]
    fn iconv_is_suggested_where_it_helps() {
        let latin = b"caf\xe9 noir, encore un caf\xe9";
        check_refused(
            latin,
            &["offset 3 (0xe9); convert it, for", "iconv -f WINDOWS-1252 -t UTF-8 'a play.txt'"],
            "cut off",
        );
        // Latin-1 or cut off.
        check_refused(b"caf\xc3", &["offset 3 (0xc3)", "cut off", "iconv -f WINDOWS-1252"], "");
        check_refused(
            "été caf\u{e9}".as_bytes().split_last().unwrap().1,
            &["incomplete", "head -c 9 'a play.txt'"],
            "iconv",
        );
        let damaged = [&"été ".repeat(9).into_bytes()[..], b"\xe9 ", "été".as_bytes()].concat();
        check_refused(&damaged, &["1 bytes are invalid", "drop these: iconv -c -f UTF-8"], "WINDOWS");
        // Russian in KOI8-R: a wrong guess would garble it.
        check_refused(
            b"\xf7\xd9\xc8\xcf\xc4\xc9\xd4 \xcd\xc5\xc4\xd7\xc5\xc4\xd8",
            &["iconv -f ENCODING", "`file 'a play.txt'`"],
            "WINDOWS",
        );
    }

    #[test]
    fn commands_for_stdin_use_a_placeholder() {
        let Err(error) = plain(Path::new(STDIN), b"%PDF-1".to_vec(), LineEndings::Lf) else {
            panic!("a PDF")
        };
        assert_eq!(
            error.to_string(),
            "the text on stdin: it is a PDF, not text; extract its text: pdftotext FILE"
        );
    }
}
