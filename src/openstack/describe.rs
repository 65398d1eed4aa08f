//! What Glance itself says about an image: asked where a caller's word is not enough.

use std::time::Duration;

use reqwest::{Response, StatusCode};
use serde::Deserialize;
use uuid::Uuid;

use super::access::Access;
use super::failure::{unavailable, without_url};
use crate::config;
use crate::fault::{Fault, FaultKind, OrFault, Result};

/// How long Glance may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most bytes of an answer.
const MAX_ANSWER: usize = 4 << 20;

/// An image's description, of which only this is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Described {
    /// `public` is an image that an administrator gave to everybody.
    #[serde(default)]
    pub visibility: String,
    /// What the image's owner says that it is.
    #[serde(default)]
    pub disk_format: Option<String>,
    /// How [`Described::os_hash_value`] was computed.
    #[serde(default)]
    pub os_hash_algo: Option<String>,
    /// Hash of the content.
    #[serde(default)]
    pub os_hash_value: Option<String>,
}

/// Asks Glance for it. Blocks.
pub fn describe(access: Access<'_>, image: Uuid, config: &config::Images) -> Result<Described> {
    access.check(image, config)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .or_fault("starting an event loop to ask Glance")?;
    let granted = access.grant(&runtime, config)?;
    let url = granted.image_url(image, config)?;
    let client = granted.client(config)?.timeout(PATIENCE).build().or_fault("asking Glance")?;
    runtime.block_on(async {
        let response =
            client.get(url).send().await.map_err(|error| unavailable(without_url(error)))?;
        accept(response.status())?;
        parse(&read(response).await?)
    })
}

fn accept(status: StatusCode) -> Result<()> {
    match status {
        StatusCode::OK => Ok(()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
            Err(Fault::new(
                FaultKind::GlanceForbidden,
                "the token may not see the image's description; it may have expired",
            ))
        }
        other => Err(unavailable(format!("it answered {other}"))),
    }
}

async fn read(mut response: Response) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(piece) =
        response.chunk().await.map_err(|error| unavailable(without_url(error)))?
    {
        body.extend_from_slice(&piece);
        if body.len() > MAX_ANSWER {
            return Err(unavailable("the image's description does not end"));
        }
    }
    Ok(body)
}

fn parse(body: &[u8]) -> Result<Described> {
    serde_json::from_slice(body).map_err(|_| unavailable("the image's description is none"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use wiremock::matchers::{header, method, path};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    fn ask(answer: ResponseTemplate) -> Result<Described> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let id = Uuid::new_v4();
        let server = runtime.block_on(async {
            let server = MockServer::start().await;
            Mock::given(method("GET"))
                .and(path(format!("/image/v2/images/{id}")))
                .and(header("x-auth-token", "secret"))
                .respond_with(answer)
                .mount(&server)
                .await;
            server
        });
        let endpoint = format!("{}/image/v2", server.uri());
        let access = Access {
            section: "source",
            endpoint: Some(&endpoint),
            token: Some("secret"),
            service_token: None,
        };
        describe(access, id, &config::Images::default())
    }

    #[test]
    fn what_glance_says_is_read_and_no_more() {
        let said = json!({
            "visibility": "public", "disk_format": "vmdk", "os_hash_algo": null, "size": 5,
        });
        let found = ask(ResponseTemplate::new(200).set_body_json(said)).unwrap();
        assert_eq!(
            (found.visibility.as_str(), found.disk_format.as_deref()),
            ("public", Some("vmdk"))
        );
        assert_eq!(found.os_hash_algo, None);
    }

    #[test]
    fn another_answer_is_a_fault_of_its_kind() {
        for (status, kind) in [
            (401, FaultKind::GlanceForbidden),
            (404, FaultKind::GlanceForbidden),
            (500, FaultKind::GlanceUnavailable),
            (200, FaultKind::GlanceUnavailable),
        ] {
            let fault = ask(ResponseTemplate::new(status).set_body_string("secret")).unwrap_err();
            assert_eq!(fault.kind, kind, "{status}");
            assert!(!fault.detail.contains("secret"));
        }
    }
}
