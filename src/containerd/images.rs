//! Image records.

use std::time::SystemTime;

use super::{CallError, Namespace, client::MESSAGE_LEN_MAX, content::system_time};
use crate::{
    oci::Digest,
    wire::containerd::services::images::v1::{ListImagesRequest, images_client::ImagesClient},
};

/// An image by its name. containerd writes the record after it has unpacked the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub name: String,
    /// Manifest or index.
    pub target: Digest,
    pub media_type: String,
    pub updated_at: Option<SystemTime>,
}

impl Namespace {
    /// All images; those whose target's digest cannot be checked are left out.
    ///
    /// # Errors
    /// The call failed.
    pub async fn images(&self) -> Result<Vec<Image>, CallError> {
        let asked = format!("list images in namespace {}", self.name());
        let mut service = ImagesClient::new(self.client.channel()).max_decoding_message_size(MESSAGE_LEN_MAX);
        let request = self.request(ListImagesRequest::default())?;
        let answer = self.client.ask(&asked, service.list(request)).await?;
        let images = answer.images.into_iter().filter_map(|image| {
            let target = image.target?;
            Some(Image {
                name: image.name,
                target: target.digest.parse().ok()?,
                media_type: target.media_type,
                updated_at: image.updated_at.and_then(system_time),
            })
        });
        Ok(images.collect())
    }
}
