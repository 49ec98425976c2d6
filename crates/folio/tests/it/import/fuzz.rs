//! Feeds the readers of other programs' files with changed files, as in [`crate::fuzz`].

use std::io::{Read, Write};

use proptest::collection::vec;
use proptest::prelude::*;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::*;
use crate::fuzz::{cases, check_error, edit, edited};

/// Every file of the golden models.
const FILES: [&str; 11] = [
    "hf/model.safetensors",
    "hf/config.json",
    "hf_varied/model-00001-of-00002.safetensors",
    "hf_varied/model.safetensors.index.json",
    "hf_varied/vocab.json",
    "hf_varied/merges.txt",
    "hf_bin/pytorch_model.bin",
    "nanogpt/ckpt.pt",
    "nanogpt/meta.pkl",
    "mingpt/model.pt",
    "mingpt/config.json",
];

/// Imports a model with a changed file. What is accepted can be used.
fn import_changed(name: &str, file: &str, bytes: &[u8]) {
    let place = copy(name);
    fs::write(place.path().join(file), bytes).unwrap();
    match import::read(place.path(), &hints(name)) {
        Err(error) => check_error(&error, file),
        Ok(model) => {
            let base = Settings { block_size: 1, ..Settings::default() };
            if let Err(error) = model.settings(base).and_then(|settings| settings.validate()) {
                check_error(&error, file);
            }
            let last = model.tokenizer.vocab_size() as u32 - 1;
            model.tokenizer.decode(&[0, last]);
            let mut backend = CpuBackend::from_parameters(model.config, Precision::F32, model.parameters);
            backend.next_logits(&[0, last][..model.config.block_size.min(2)]);
        }
    }
}

/// A file of torch.save with another pickle and valid checksums.
fn with_pickle(file: &Path, change: impl FnOnce(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut archive = ZipArchive::new(fs::File::open(file).unwrap()).unwrap();
    let mut target = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut change = Some(change);
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).unwrap();
        let name = entry.name().unwrap().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if name.ends_with("data.pkl") {
            content = change.take().expect("one pickle")(&content);
        }
        target.start_file(name, stored).unwrap();
        target.write_all(&content).unwrap();
    }
    target.finish().unwrap().into_inner()
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn a_file_of_another_program(file in prop::sample::select(FILES.to_vec()), edits in vec(edit(), 1..4)) {
        let (name, file) = file.split_once('/').unwrap();
        import_changed(name, file, &edited(&fs::read(golden(name).join(file)).unwrap(), &edits));
    }

    #[test]
    fn a_pickle_in_a_sound_zip_file(
        file in prop::sample::select(vec!["hf_bin/pytorch_model.bin", "nanogpt/ckpt.pt", "mingpt/model.pt"]),
        edits in vec(edit(), 1..4),
    ) {
        let (name, file) = file.split_once('/').unwrap();
        import_changed(name, file, &with_pickle(&golden(name).join(file), |pickle| edited(pickle, &edits)));
    }

    #[test]
    fn the_header_of_a_safetensors_file(edits in vec(edit(), 1..4)) {
        let bytes = fs::read(golden("hf/model.safetensors")).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = edited(&bytes[8..8 + length], &edits);
        // The length is that of the changed header, so that it is parsed.
        let changed = [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[8 + length..]].concat();
        import_changed("hf", "model.safetensors", &changed);
    }
}
