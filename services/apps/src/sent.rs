//! Images of archives that somebody sent. The archive is never stored: it is unpacked as it comes, into a layer that
//! appears when all of it is there and its digest is what was said.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
};

use image::{Limits, Store, StoreError, unpack};
use model::{
    ImageRef,
    image::{Digest, ImageInfo},
};
use sha2::Digest as _;

use crate::{BuildError, builds::Progress};

/// Unpacks what comes out of `input`.
pub fn receive(
    store: &Store,
    limits: &Limits,
    image: &ImageRef,
    input: OwnedFd,
    progress: &Progress,
) -> Result<ImageInfo, BuildError> {
    let ImageRef::Sent { digest, .. } = image else { return Err(BuildError::NotSent(image.to_string())) };
    let _lock = store.build_lock()?;
    let mut input = Digested { input: File::from(input), digest: sha2::Sha256::new(), read: 0, progress };
    let added = store.add_with(|root| {
        let unpacked = unpack(&mut input, root, *limits);
        if unpacked.is_err() && !is_cut(&unpacked) {
            return Ok(unpacked?);
        }
        // to the end: the digest is of all there is
        let rest = io::copy(&mut (&mut input).take(limits.bytes), &mut io::sink());
        let found = Digest::from_hex(hex::encode(input.digest.clone().finalize()));
        // what is wrong with half an archive is that it is half
        if found.as_ref() != Ok(digest) {
            return Err(BuildError::OtherContent(image.to_string()));
        }
        unpacked?;
        rest.map_err(|source| BuildError::File { doing: "reading what was sent".to_owned(), source })?;
        progress.say("storing the layer", 0, 0);
        Ok(())
    });
    let (id, size) = added?;
    let built = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    let info = ImageInfo { reference: image.clone(), layers: vec![id], sizes: vec![size], built };
    store.put_image(&info)?;
    Ok(info)
}

fn is_cut(unpacked: &Result<(), StoreError>) -> bool {
    matches!(unpacked, Err(StoreError::Archive(archive::ArchiveError::Ends(_))))
}

/// A stream whose digest is taken on the way.
struct Digested<'a> {
    input: File,
    digest: sha2::Sha256,
    read: u64,
    progress: &'a Progress,
}

impl Read for Digested<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.digest.update(&buffer[..read]);
        self.read += read as u64;
        self.progress.say("unpacking", self.read >> 20 << 20, 0);
        Ok(read)
    }
}
