//! What foca wants done.

use std::time::Duration;

use bytes::Bytes;
use foca::{Notification, OwnedNotification, Timer};

use super::life::Life;

/// Kept until foca is done; then [`super::Swim`] does it.
#[derive(Default)]
pub(super) struct Outbox {
    pub(super) frames: Vec<(Life, Bytes)>,
    pub(super) timers: Vec<(Duration, Timer<Life>)>,
    pub(super) news: Vec<OwnedNotification<Life>>,
}

impl foca::Runtime<Life> for Outbox {
    fn notify(&mut self, notification: Notification<'_, Life>) {
        self.news.push(notification.to_owned());
    }

    fn send_to(&mut self, to: Life, data: &[u8]) {
        self.frames.push((to, Bytes::copy_from_slice(data)));
    }

    fn submit_after(&mut self, event: Timer<Life>, after: Duration) {
        self.timers.push((after, event));
    }
}
