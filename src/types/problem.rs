//! A fault on the wire: RFC 9457 problem details.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::fault::{Fault, FaultKind};

/// An RFC 9457 problem (`application/problem+json`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:berth:fault:` and the code.
    #[serde(rename = "type")]
    pub problem_type: String,
    /// The fault's constant summary.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The fault's stable code.
    pub code: FaultKind,
    /// What happened and what to do.
    pub detail: String,
    /// Path of the request field at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The request id, to find the log lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl From<&Fault> for Problem {
    fn from(fault: &Fault) -> Self {
        Problem {
            problem_type: format!("urn:berth:fault:{}", fault.kind.code()),
            title: fault.kind.title().to_owned(),
            status: fault.kind.status(),
            code: fault.kind,
            detail: fault.detail.clone(),
            field: fault.field.clone(),
            request_id: None,
        }
    }
}

impl From<&Problem> for Fault {
    fn from(problem: &Problem) -> Self {
        let field = problem.field.clone();
        Fault { field, ..Fault::new(problem.code, &problem.detail) }
    }
}
