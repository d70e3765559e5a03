//! containerd's own image service, as kubelet asks it.

use std::time::Duration;

use tonic::Request;

use super::{CallError, Client};
use crate::wire::cri::{AuthConfig, ImageSpec, PullImageRequest, image_service_client::ImageServiceClient};

/// Longest pull of one image. containerd has its own limit on a pull without progress (5 minutes); this one only keeps
/// a call from waiting for a containerd that hangs.
const PULL_MAX: Duration = Duration::from_secs(3600);

impl Client {
    /// Has containerd pull an image as kubelet would: into CRI's namespace, unpacked by CRI's snapshotter.
    ///
    /// # Errors
    /// containerd is absent, has no CRI, or cannot pull it.
    pub async fn pull_image(&self, image: &str, auth: Option<AuthConfig>) -> Result<(), CallError> {
        let mut service = ImageServiceClient::new(self.channel());
        let spec = ImageSpec { image: image.to_owned(), ..ImageSpec::default() };
        let request = PullImageRequest { image: Some(spec), auth, sandbox_config: None };
        let asked = format!("pull {image}");
        self.within(PULL_MAX, &asked, service.pull_image(Request::new(request))).await.map(drop)
    }
}
