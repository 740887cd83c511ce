//! OCI image layout: `index.json` → (index →)* manifest → config and layers.

use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest, MediaType, Os, Platform};

use super::archive::{Archive, blob_name, wrong_size};
use super::{
    Blob, Image, not_in_archive, parse, parse_config, platform_name, too_many_layers,
    wrong_platform,
};
use crate::images::Limits;
use crate::images::digest::Digest;
use crate::images::error::ImageError;

/// Indexes inside each other; buildx writes two.
const INDEX_DEPTH: usize = 4;
const NAME: &str = "org.opencontainers.image.ref.name";
/// Where containerd and buildx keep the full name.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

pub fn open(
    archive: &Archive,
    reference: Option<&str>,
    limits: &Limits,
) -> Result<Image, ImageError> {
    if !archive.contains("index.json") {
        return Err(ImageError::corrupt(if archive.contains("manifest.json") {
            "This is not an OCI archive but a docker-archive; import it as docker-archive:FILE"
        } else {
            "This is not an OCI archive: index.json is missing"
        }));
    }
    let index: ImageIndex = parse(
        &archive.read("index.json", limits.manifest_bytes)?,
        "index.json",
    )?;
    let chosen = by_name(index.manifests(), reference)?;
    let names = chosen.iter().flat_map(|found| names(found)).collect();
    let descriptor = for_this_host(&chosen)?;
    let (digest, manifest) = manifest(archive, descriptor, limits)?;
    image(archive, digest, &manifest, names, limits)
}

/// The image whose manifest this is. Names are not in it.
pub fn open_manifest(
    archive: &Archive,
    digest: Digest,
    limits: &Limits,
) -> Result<Image, ImageError> {
    let size = archive.place(&blob_name(&digest))?.length;
    let bytes = archive.read_blob(&digest, size, "manifest", limits.manifest_bytes)?;
    image(
        archive,
        digest,
        &parse(&bytes, "the manifest")?,
        Vec::new(),
        limits,
    )
}

/// The entries that `reference` means. Without one, all of them, if they are one image: a single
/// entry, or an image for several platforms laid out flat.
fn by_name<'a>(
    all: &'a [Descriptor],
    reference: Option<&str>,
) -> Result<Vec<&'a Descriptor>, ImageError> {
    let chosen: Vec<_> = match reference {
        None => all.iter().collect(),
        Some(wanted) => all
            .iter()
            .filter(|entry| {
                entry.digest().as_ref() == wanted || names(entry).iter().any(|name| name == wanted)
            })
            .collect(),
    };
    let all_names = || all.iter().flat_map(names).collect::<Vec<_>>();
    let Some(first) = chosen.first() else {
        return Err(not_in_archive(reference, all_names()));
    };
    let is_one_image = chosen.iter().all(|entry| names(entry) == names(first))
        && (chosen.len() == 1 || chosen.iter().all(|entry| entry.platform().is_some()));
    if !is_one_image {
        let mut held = all_names();
        if held.is_empty() {
            held.extend(all.iter().map(|entry| entry.digest().to_string()));
        }
        return Err(not_in_archive(None, held));
    }
    Ok(chosen)
}

fn names(entry: &Descriptor) -> Vec<String> {
    let annotations = entry.annotations().as_ref();
    [NAME, CONTAINERD_NAME]
        .iter()
        .filter_map(|key| annotations?.get(*key).cloned())
        .collect()
}

/// Follows indexes down to the manifest for this host.
fn manifest(
    archive: &Archive,
    descriptor: &Descriptor,
    limits: &Limits,
) -> Result<(Digest, ImageManifest), ImageError> {
    let mut descriptor = descriptor.clone();
    for _ in 0..INDEX_DEPTH {
        let digest = sha256(&descriptor)?;
        let bytes = archive.read_blob(
            &digest,
            descriptor.size(),
            "manifest",
            limits.manifest_bytes,
        )?;
        match descriptor.media_type() {
            MediaType::ImageManifest => return Ok((digest, parse(&bytes, "the manifest")?)),
            MediaType::Other(kind) if kind == DOCKER_MANIFEST => {
                return Ok((digest, parse(&bytes, "the manifest")?));
            }
            MediaType::ImageIndex => {}
            MediaType::Other(kind) if kind == DOCKER_INDEX => {}
            other => {
                return Err(ImageError::unsupported(format!(
                    "Manifests of type {other} are not supported"
                )));
            }
        }
        let index: ImageIndex = parse(&bytes, "the image index")?;
        let entries: Vec<_> = index.manifests().iter().collect();
        descriptor = for_this_host(&entries)?.clone();
    }
    Err(ImageError::corrupt("Image indexes are nested too deep"))
}

/// The entry of an index that runs here.
pub fn for_this_host<'a>(entries: &[&'a Descriptor]) -> Result<&'a Descriptor, ImageError> {
    if let [only] = entries
        && only.platform().is_none()
    {
        return Ok(only);
    }
    let variant = |entry: &Descriptor| entry.platform().as_ref().and_then(|p| p.variant().clone());
    let fits = |entry: &&&Descriptor| entry.platform().as_ref().is_some_and(is_this_host);
    // Without a variant (or v1) an image runs on every amd64 processor; v2 and up may not.
    let plain = |entry: &&&Descriptor| variant(entry).is_none_or(|name| name == "v1");
    if let Some(found) = entries
        .iter()
        .filter(fits)
        .find(plain)
        .or_else(|| entries.iter().find(fits))
    {
        return Ok(found);
    }
    let found: Vec<_> = entries
        .iter()
        .filter_map(|entry| entry.platform().as_ref())
        .map(|platform| platform_name(platform.os(), platform.architecture()))
        // Attestations of buildx are listed as such a platform.
        .filter(|name| name != "unknown/unknown")
        .collect();
    if found.is_empty() {
        return Err(ImageError::corrupt("The image index names no platform"));
    }
    Err(wrong_platform(&found))
}

fn is_this_host(platform: &Platform) -> bool {
    *platform.os() == Os::Linux && *platform.architecture() == Arch::Amd64
}

fn image(
    archive: &Archive,
    digest: Digest,
    manifest: &ImageManifest,
    names: Vec<String>,
    limits: &Limits,
) -> Result<Image, ImageError> {
    let config = manifest.config();
    match config.media_type() {
        MediaType::ImageConfig => {}
        MediaType::Other(kind) if kind == DOCKER_CONFIG => {}
        other => {
            return Err(ImageError::unsupported(format!(
                "This is an artifact of type {other}, not a container image"
            )));
        }
    }
    let bytes = archive.read_blob(
        &sha256(config)?,
        config.size(),
        "config",
        limits.config_bytes,
    )?;
    let config = parse_config(&bytes, limits)?;
    let layers = manifest.layers();
    if layers.len() > limits.layers {
        return Err(too_many_layers(layers.len(), limits));
    }
    if layers.len() != config.diff_ids.len() {
        return Err(ImageError::corrupt(format!(
            "The manifest has {} layers, the config {}",
            layers.len(),
            config.diff_ids.len()
        )));
    }
    let layers = layers
        .iter()
        .zip(config.diff_ids)
        .map(|(descriptor, diff_id)| layer(archive, descriptor, diff_id))
        .collect::<Result<_, _>>()?;
    Ok(Image {
        digest,
        names,
        config: config.config,
        layers,
    })
}

fn layer(archive: &Archive, descriptor: &Descriptor, diff_id: Digest) -> Result<Blob, ImageError> {
    let kind = descriptor.media_type();
    let supported = match kind {
        MediaType::ImageLayer | MediaType::ImageLayerGzip | MediaType::ImageLayerZstd => true,
        // Fine when the blob is in the archive after all.
        MediaType::ImageLayerNonDistributable
        | MediaType::ImageLayerNonDistributableGzip
        | MediaType::ImageLayerNonDistributableZstd => {
            archive.contains(&blob_name(&sha256(descriptor)?))
        }
        MediaType::Other(kind) => kind.starts_with(DOCKER_LAYER) && !kind.contains("encrypted"),
        _ => false,
    };
    if !supported {
        return Err(ImageError::unsupported(format!(
            "Layers of type {kind} are not supported"
        )));
    }
    let digest = sha256(descriptor)?;
    let place = archive.place(&blob_name(&digest))?;
    if place.length != descriptor.size() {
        return Err(wrong_size(
            &format!("layer {digest}"),
            descriptor.size(),
            place.length,
        ));
    }
    Ok(Blob {
        place,
        digest: Some(digest),
        diff_id,
    })
}

fn sha256(descriptor: &Descriptor) -> Result<Digest, ImageError> {
    let text: &str = descriptor.digest().as_ref();
    text.parse()
        .map_err(|error| ImageError::unsupported(format!("Only sha256 is supported: {error}")))
}
