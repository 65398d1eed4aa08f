//! The HTTP API, `/v1`.
//!
//! * [`gate`] is what every request passes: its id, the log, the metrics, what
//!   the description allows, panics.
//! * [`extract`] reads requests, [`answer`] writes answers and problems.
//! * One file for each kind of resource holds its handlers; [`verbs`] is a table
//!   of what is done to instances. Each handler declares its faults (`x-faults`).
//! * [`openapi`] is the description, generated from the handlers; [`surface`]
//!   lets the gate refuse what it does not describe.
//! * [`mod@app`] puts [`routes`] and gate together over what handlers have in common
//!   ([`shared`]).

mod answer;
mod app;
mod console;
mod events;
mod exec;
mod extract;
mod gate;
mod host;
mod images;
mod incoming;
mod instances;
mod interfaces;
mod openapi;
mod operations;
mod remote_consoles;
mod routes;
mod service;
mod shared;
mod socket;
mod surface;
mod verbs;
mod volumes;

pub use self::app::app;
pub use self::console::{Size, TerminalMessage};
pub use self::exec::{ExecMessage, STDERR_TAG, STDOUT_TAG};
pub use self::gate::{Peer, REQUEST_ID_HEADER};
pub use self::host::CheckList;
pub use self::images::ImageList;
pub use self::instances::{InstanceList, StatsList};
pub use self::interfaces::InterfaceList;
pub use self::openapi::{document, document_json};
pub use self::operations::OperationList;
pub use self::shared::Api;
pub use self::volumes::VolumeList;
