//! Reading requests: ids in the path, query, body, preferences. Whatever is
//! wrong is a fault that names the field and the remedy.

use std::pin::Pin;
use std::str::FromStr;
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::{FromRequest, HttpRequest, web};
use futures_util::StreamExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::future::{Future, Ready, ready};
use uuid::Uuid;

use crate::fault::{Fault, FaultKind, Result};
use crate::types::{ConsoleProtocol, IncomingFile};

/// Most bytes of a body, unless the endpoint says otherwise.
pub(super) const BODY_LIMIT: usize = 1 << 20;

/// Most bytes of a create request's body: it carries files.
pub(super) const CREATE_LIMIT: usize = 8 << 20;

/// The `{id}` of the path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Id(pub Uuid);

/// The `{port_id}` of the path.
#[derive(Clone, Copy, Debug)]
pub(super) struct PortId(pub Uuid);

/// The `{volume_id}` of the path.
#[derive(Clone, Copy, Debug)]
pub(super) struct VolumeId(pub Uuid);

impl FromRequest for VolumeId {
    type Error = Fault;
    type Future = Ready<Result<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(path_id(request, "volume_id").map(VolumeId))
    }
}

impl FromRequest for Id {
    type Error = Fault;
    type Future = Ready<Result<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(path_id(request, "id").map(Id))
    }
}

impl FromRequest for PortId {
    type Error = Fault;
    type Future = Ready<Result<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(path_id(request, "port_id").map(PortId))
    }
}

/// The `{protocol}` of the path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Protocol(pub ConsoleProtocol);

impl FromRequest for Protocol {
    type Error = Fault;
    type Future = Ready<Result<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let text = request.match_info().query("protocol");
        let known = serde_json::from_value(text.into()).map(Protocol);
        ready(known.map_err(|_| Fault::invalid("protocol", "must be serial or vnc")))
    }
}

/// The `{digest}` of the path.
#[derive(Clone, Debug)]
pub(super) struct Layer(pub String);

impl FromRequest for Layer {
    type Error = Fault;
    type Future = Ready<Result<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Ok(Layer(request.match_info().query("digest").to_owned())))
    }
}

/// The `{file}` of the path.
#[derive(Clone, Copy, Debug)]
pub(super) struct MoveFile(pub IncomingFile);

impl FromRequest for MoveFile {
    type Error = Fault;
    type Future = Ready<Result<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let text = request.match_info().query("file");
        let known = serde_json::from_value(text.into()).map(MoveFile);
        ready(known.map_err(|_| Fault::invalid("file", "is no file of an instance that moves")))
    }
}

fn path_id(request: &HttpRequest, name: &str) -> Result<Uuid> {
    let text = request.match_info().query(name);
    // The hyphenated form only: an id has one spelling in a path.
    match Uuid::try_parse(text) {
        Ok(id) if text.len() == 36 => Ok(id),
        _ => Err(Fault::invalid(
            name,
            format!("{text:?} is no id such as 6f70656e-7374-4b63-8a00-62657274680a"),
        )),
    }
}

/// The query's names and values. Unknown names never get here: the gate
/// refuses them.
#[derive(Clone, Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Parses the part of an address after the `?`.
    pub fn parse(query: &str) -> Result<Query> {
        web::Query::<Vec<(String, String)>>::from_query(query)
            .map(|pairs| Query(pairs.into_inner()))
            .map_err(|e| Fault::invalid("query", e.to_string()))
    }

    /// All names, with repetitions.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// Every value of a name that may be repeated.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The value of a name that may be given once; `expected` describes it.
    pub fn one<T: FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>> {
        let mut values = self.all(name);
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(Fault::invalid(name, "is given more than once; give it once"));
        }
        let parsed = value.parse().map(Some);
        parsed.map_err(|_| Fault::invalid(name, format!("{value:?} is not {expected}")))
    }
}

impl FromRequest for Query {
    type Error = Fault;
    type Future = Ready<Result<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Query::parse(request.query_string()))
    }
}

/// A JSON body of at most `LIMIT` bytes.
#[derive(Debug)]
pub(super) struct Body<T, const LIMIT: usize = BODY_LIMIT>(pub T);

/// A JSON body that may be left out.
#[derive(Debug)]
pub(super) struct OptionalBody<T>(pub T);

/// A body of bytes, at most `LIMIT`.
#[derive(Debug)]
pub(super) struct Raw<const LIMIT: usize>(pub Vec<u8>);

impl<const LIMIT: usize> FromRequest for Raw<LIMIT> {
    type Error = Fault;
    type Future = Extracted<Self>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let body = read(request, payload, LIMIT);
        Box::pin(async move { body.await.map(Raw) })
    }
}

/// The body of an action that has nothing to say: empty, or `{}`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

type Extracted<T> = Pin<Box<dyn Future<Output = Result<T>>>>;

impl<T: DeserializeOwned + 'static, const LIMIT: usize> FromRequest for Body<T, LIMIT> {
    type Error = Fault;
    type Future = Extracted<Self>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let body = read(request, payload, LIMIT);
        let request = request.clone();
        Box::pin(async move {
            let bytes = body.await?;
            check_media_type(&request)?;
            parse(&bytes).map(Body)
        })
    }
}

impl<T: DeserializeOwned + Default + 'static> FromRequest for OptionalBody<T> {
    type Error = Fault;
    type Future = Extracted<Self>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let body = read(request, payload, BODY_LIMIT);
        let request = request.clone();
        Box::pin(async move {
            let bytes = body.await?;
            if bytes.is_empty() {
                return Ok(OptionalBody(T::default()));
            }
            check_media_type(&request)?;
            // `null` is how JSON leaves something out.
            Ok(OptionalBody(parse::<Option<T>>(&bytes)?.unwrap_or_default()))
        })
    }
}

/// Reads a body; a declared length above the limit is refused unread.
fn read(
    request: &HttpRequest,
    payload: &mut Payload,
    limit: usize,
) -> impl Future<Output = Result<Vec<u8>>> + use<> {
    let declared = request
        .headers()
        .get(actix_web::http::header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let mut payload = payload.take();
    let too_large = move || {
        Fault::new(
            FaultKind::PayloadTooLarge,
            format!("the body is larger than the {limit} bytes that this endpoint takes"),
        )
    };
    async move {
        if declared.is_some_and(|length| length > limit as u64) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = payload.next().await {
            let chunk =
                chunk.map_err(|e| Fault::invalid("body", format!("the body broke off: {e}")))?;
            if bytes.len() + chunk.len() > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

/// `application/json`, another type with the suffix `+json`, or no type at all.
fn check_media_type(request: &HttpRequest) -> Result<()> {
    let Some(value) = request.headers().get(CONTENT_TYPE) else { return Ok(()) };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    if essence == "application/json" || essence.ends_with("+json") {
        return Ok(());
    }
    Err(Fault::new(
        FaultKind::UnsupportedMediaType,
        format!("the body's type is {essence:?}; send application/json"),
    ))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|e| {
        let path = e.path().to_string();
        let detail = e.inner().to_string();
        // Of text that is no JSON, the path says nothing that helps.
        let known = Some(path.as_str()).filter(|path| e.inner().is_data() && *path != ".");
        // The path of what is missing ends at what it is missing from.
        let missing =
            detail.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
        let field: Vec<_> = known.into_iter().chain(missing).collect();
        Fault::invalid(if field.is_empty() { "body".to_owned() } else { field.join(".") }, detail)
    })?;
    deserializer.end().map_err(|e| Fault::invalid("body", e.to_string()))?;
    Ok(value)
}

/// RFC 7240 preferences that berth honours: `respond-async` and `wait`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Prefer {
    respond_async: bool,
    wait: Option<Duration>,
}

impl Prefer {
    /// How long to wait for an operation's end; `None`: until it ends.
    pub fn patience(self) -> Option<Duration> {
        self.wait.or(self.respond_async.then_some(Duration::ZERO))
    }

    /// Whether the client wants the operation even if it has ended already.
    pub fn respond_at_once(self) -> bool {
        self.respond_async && self.wait.is_none()
    }

    /// For the `Preference-Applied` header.
    pub fn applied(self) -> &'static str {
        if self.respond_async { "respond-async" } else { "wait" }
    }

    /// Unknown and malformed preferences are ignored, as RFC 7240 demands.
    fn parse<'a>(values: impl Iterator<Item = &'a str>) -> Prefer {
        let mut prefer = Prefer::default();
        for preference in values.flat_map(|value| value.split(',')) {
            let preference = preference.split(';').next().unwrap_or_default();
            let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
            let value = value.trim().trim_matches('"');
            match name.trim().to_ascii_lowercase().as_str() {
                "respond-async" => prefer.respond_async = true,
                // The first one counts.
                "wait" if prefer.wait.is_none() => {
                    prefer.wait =
                        value.parse::<u32>().ok().map(|s| Duration::from_secs(u64::from(s)));
                }
                _ => {}
            }
        }
        prefer
    }
}

impl FromRequest for Prefer {
    type Error = Fault;
    type Future = Ready<Result<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let values = request.headers().get_all("prefer").filter_map(|value| value.to_str().ok());
        ready(Ok(Prefer::parse(values)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::InstanceCreate;

    #[test]
    fn preferences() {
        let table: &[(&[&str], Option<u64>, bool)] = &[
            (&[], None, false),
            (&["respond-async"], Some(0), true),
            (&["Respond-Async; x=y, wait=5"], Some(5), false),
            (&["wait=\"7\""], Some(7), false),
            (&["return=minimal", "wait=3", "wait=9"], Some(3), false),
            (&["wait=-1"], None, false),
            (&["wait=soon, respond-async=1"], Some(0), true),
        ];
        for (values, seconds, at_once) in table {
            let prefer = Prefer::parse(values.iter().copied());
            assert_eq!(prefer.patience(), seconds.map(Duration::from_secs), "{values:?}");
            assert_eq!(prefer.respond_at_once(), *at_once, "{values:?}");
        }
    }

    #[test]
    fn a_body_at_fault_names_the_field() {
        let flavor = |memory: &str| {
            format!(
                r#"{{"name":"x","image_id":"6f70656e-7374-4b63-8a00-62657274680a",
                "flavor":{{"vcpus":1,"root_gb":1,{memory}}}}}"#
            )
        };
        let field = |text: &str| {
            parse::<InstanceCreate>(text.as_bytes()).map(|_| ()).unwrap_err().field.unwrap()
        };
        assert_eq!(field(&flavor("\"memory_mb\":-1")), "flavor.memory_mb");
        assert_eq!(field(&flavor("\"memory_mb\":16,\"memry\":1")), "flavor.memry");
        assert_eq!(field("{"), "body");
        assert_eq!(field(&format!("{} x", flavor("\"memory_mb\":16"))), "body");
    }

    #[test]
    fn a_query_value_is_given_once_and_parses() {
        let query = Query::parse("a=1&b=x&a=2&c=%F0%9F%9A%A2").unwrap();
        assert!(query.one::<u32>("a", "a number").is_err());
        assert_eq!(query.one::<u32>("b", "a number").unwrap_err().field.as_deref(), Some("b"));
        assert_eq!(query.one::<String>("c", "text").unwrap().as_deref(), Some("🚢"));
        assert_eq!(query.one::<u32>("d", "a number").unwrap(), None);
        assert_eq!(query.all("a").collect::<Vec<_>>(), ["1", "2"]);
    }
}
