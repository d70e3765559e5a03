//! What containerd tells of by itself.

use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use prost::Message as _;

use super::{CallError, Client, client::MESSAGE_LEN_MAX};
use crate::{
    oci::Digest,
    wire::containerd::{
        services::{
            events::v1::{ContentEvent, SubscribeRequest, events_client::EventsClient},
            images::v1::ImageEvent,
        },
        types::Envelope,
    },
};

/// The events that [`Event`] can tell.
pub const EVENT_FILTERS: [&str; 5] = [
    r#"topic=="/content/create""#,
    r#"topic=="/content/delete""#,
    r#"topic=="/images/create""#,
    r#"topic=="/images/update""#,
    r#"topic=="/images/delete""#,
];

/// Something happened in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A blob was committed. Only 2.x says so.
    ContentCreated {
        namespace: String,
        digest: Digest,
    },
    /// A blob is gone from the namespace. Only 2.x says so.
    ContentDeleted {
        namespace: String,
        digest: Digest,
    },
    ImageCreated {
        namespace: String,
        name: String,
    },
    ImageUpdated {
        namespace: String,
        name: String,
    },
    ImageDeleted {
        namespace: String,
        name: String,
    },
}

impl Event {
    #[must_use]
    pub fn namespace(&self) -> &str {
        match self {
            Self::ContentCreated { namespace, .. }
            | Self::ContentDeleted { namespace, .. }
            | Self::ImageCreated { namespace, .. }
            | Self::ImageUpdated { namespace, .. }
            | Self::ImageDeleted { namespace, .. } => namespace,
        }
    }
}

impl Client {
    /// Events from now on, in all namespaces, that match any of `filters`. The subscription is made when the
    /// stream is first polled; it ends with an error when the connection breaks, and the caller then subscribes
    /// anew and looks for what it missed. (containerd acknowledges a subscription only with its first event,
    /// so nobody can wait for it.)
    pub fn events(&self, filters: &[&str]) -> impl Stream<Item = Result<Event, CallError>> + Send + use<> {
        let client = self.clone();
        let filters = filters.iter().map(|&filter| filter.to_owned()).collect();
        let subscribe = async move {
            let mut service = EventsClient::new(client.channel()).max_decoding_message_size(MESSAGE_LEN_MAX);
            let address = client.address().to_owned();
            let broken = move |status| CallError::new(&address, "tell its events", status);
            let answer = service.subscribe(SubscribeRequest { filters }).await.map_err(broken.clone())?;
            Ok(answer.into_inner().map_err(broken))
        };
        stream::once(subscribe).try_flatten().filter_map(|envelope| async { envelope.map(event).transpose() })
    }
}

/// The event in an envelope; `None` for what Flotilla does not know.
fn event(envelope: Envelope) -> Option<Event> {
    let namespace = envelope.namespace;
    let value = envelope.event.map(|event| event.value).unwrap_or_default();
    // Create, update and delete of images all have the name as field 1 (events/image.proto).
    let name = || ImageEvent::decode(value.as_slice()).ok().map(|event| event.name);
    // Create and delete of content both have the digest as field 1 (events/content.proto).
    let digest = || ContentEvent::decode(value.as_slice()).ok()?.digest.parse().ok();
    match envelope.topic.as_str() {
        "/content/create" => Some(Event::ContentCreated { namespace, digest: digest()? }),
        "/content/delete" => Some(Event::ContentDeleted { namespace, digest: digest()? }),
        "/images/create" => Some(Event::ImageCreated { namespace, name: name()? }),
        "/images/update" => Some(Event::ImageUpdated { namespace, name: name()? }),
        "/images/delete" => Some(Event::ImageDeleted { namespace, name: name()? }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(topic: &str, value: Vec<u8>) -> Envelope {
        let event = prost_types::Any { type_url: "containerd.events.Any".into(), value };
        Envelope { namespace: "k8s.io".into(), topic: topic.into(), event: Some(event), timestamp: None }
    }

    #[test]
    fn envelopes_are_opened_by_their_topic() {
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"blob");
        let blob = ContentEvent { digest: digest.to_string(), size: 4 }.encode_to_vec();
        let namespace = || "k8s.io".to_owned();
        let created = event(envelope("/content/create", blob.clone()));
        assert_eq!(created, Some(Event::ContentCreated { namespace: namespace(), digest: digest.clone() }));
        let deleted = event(envelope("/content/delete", blob.clone()));
        assert_eq!(deleted, Some(Event::ContentDeleted { namespace: namespace(), digest }));
        let image = ImageEvent { name: "a:b".into(), ..ImageEvent::default() }.encode_to_vec();
        let deleted = event(envelope("/images/delete", image));
        assert_eq!(deleted, Some(Event::ImageDeleted { namespace: namespace(), name: "a:b".into() }));
        assert_eq!(event(envelope("/tasks/start", blob)), None);
        assert_eq!(event(envelope("/content/create", vec![0xff])), None);
    }
}
