//! Audits: run one at a time in the background, their verdicts kept by the process that ran them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use actix_web::HttpResponse;
use actix_web::http::header::LOCATION;
use actix_web::web::{Data, Path};
use serde::Serialize;
use utoipa::ToSchema;

use crate::actors::off_thread;
use crate::db::{AdminAction, Store};
use crate::http::Shared;
use crate::http::auth::{As, Operator, Reader};
use crate::http::problem::{Problem, ProblemDocument};
use crate::inspect::{AuditReport, AuditStep, audit};

/// How many are kept.
const KEPT: usize = 10;

/// The audits of this process.
#[derive(Default)]
pub(in crate::http) struct Audits(Mutex<VecDeque<Arc<Run>>>);

struct Run {
    id: u64,
    started_at: String,
    checked: AtomicU64,
    end: Mutex<Option<End>>,
}

struct End {
    at: String,
    /// `None` if the database failed; the log says why.
    report: Option<AuditReport>,
}

/// An audit.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditBody {
    /// Its number, in this process.
    id: u64,
    /// `running`, `done` or `failed`.
    state: &'static str,
    /// When it began.
    #[schema(format = DateTime)]
    started_at: String,
    /// When it ended.
    #[schema(format = DateTime)]
    ended_at: Option<String>,
    /// How many signatures it has looked up so far.
    signatures_checked: u64,
    /// The verdict: whether every rule was kept.
    clean: Option<bool>,
    /// All that it found, as `chancery audit --json` prints it.
    #[schema(value_type = Option<Object>)]
    report: Option<serde_json::Value>,
}

impl Audits {
    /// Starts one, unless one runs.
    fn start(&self) -> Option<Arc<Run>> {
        let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if runs.back().is_some_and(|last| last.is_running()) {
            return None;
        }
        let id = runs.back().map_or(1, |last| last.id + 1);
        let run = Arc::new(Run {
            id,
            started_at: now(),
            checked: AtomicU64::new(0),
            end: Mutex::default(),
        });
        runs.push_back(Arc::clone(&run));
        if runs.len() > KEPT {
            runs.pop_front();
        }
        Some(run)
    }

    fn find(&self, id: Option<u64>) -> Option<Arc<Run>> {
        let runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match id {
            None => runs.back().cloned(),
            Some(id) => runs.iter().find(|run| run.id == id).cloned(),
        }
    }
}

impl Run {
    fn is_running(&self) -> bool {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    fn body(&self) -> AuditBody {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let report = end.as_ref().and_then(|end| end.report.as_ref());
        AuditBody {
            id: self.id,
            state: match (&*end, report) {
                (None, _) => "running",
                (Some(_), Some(_)) => "done",
                (Some(_), None) => "failed",
            },
            started_at: self.started_at.clone(),
            ended_at: end.as_ref().map(|end| end.at.clone()),
            signatures_checked: self.checked.load(Ordering::Relaxed),
            clean: report.map(AuditReport::is_clean),
            report: report.and_then(|report| serde_json::to_value(report).ok()),
        }
    }

    async fn run(self: Arc<Self>, store: Arc<dyn Store>, actor: String) {
        let run = Arc::clone(&self);
        let audited = off_thread(move || {
            let report = audit(store.as_ref(), &|step| {
                if let AuditStep::Signatures { checked } = step {
                    run.checked.store(checked, Ordering::Relaxed);
                }
            })?;
            store.log_action(&AdminAction {
                actor: &actor,
                action: "audit.run",
                target: "every ring".to_owned(),
                detail: serde_json::json!({
                    "clean": report.is_clean(), "violations": report.violation_count
                }),
            })?;
            Ok(report)
        });
        let report = match audited.await {
            Ok(report) => {
                if !report.is_clean() {
                    tracing::error!(violations = report.violation_count, "an audit found breaches");
                }
                Some(report)
            }
            Err(error) => {
                tracing::error!(%error, "an audit failed");
                None
            }
        };
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(End { at: now(), report });
    }
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}

/// Replay the history of every ring and judge the rules, in the background
#[utoipa::path(
    post, path = "/v1/audits", tag = "audit", security(("bearer" = ["operator"])),
    responses(
        (status = 202, body = AuditBody, headers(("location" = String, description = "Where it is"))),
        (status = 409, description = "One runs already", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn start(
    caller: As<Operator>,
    shared: Data<Shared>,
) -> Result<HttpResponse, Problem> {
    let Some(run) = shared.audits.start() else {
        return Err(Problem::conflict("An audit runs already: see /v1/audits/latest."));
    };
    actix_web::rt::spawn(Arc::clone(&run).run(Arc::clone(&shared.store), caller.0.actor()));
    Ok(HttpResponse::Accepted()
        .insert_header((LOCATION, format!("/v1/audits/{}", run.id)))
        .json(run.body()))
}

/// The last audit of this node
#[utoipa::path(
    get, path = "/v1/audits/latest", tag = "audit", security(("bearer" = ["reader"])),
    responses(
        (status = 200, body = AuditBody),
        (status = 404, description = "None was run since this process started", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn latest(_: As<Reader>, shared: Data<Shared>) -> Result<HttpResponse, Problem> {
    show_run(&shared, None)
}

/// One audit of this node
#[utoipa::path(
    get, path = "/v1/audits/{id}", tag = "audit", security(("bearer" = ["reader"])),
    params(("id" = u64, Path, description = "The audit's number")),
    responses(
        (status = 200, body = AuditBody),
        (status = 404, description = "No such audit", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn show(
    _: As<Reader>,
    shared: Data<Shared>,
    id: Path<u64>,
) -> Result<HttpResponse, Problem> {
    show_run(&shared, Some(id.into_inner()))
}

fn show_run(shared: &Shared, id: Option<u64>) -> Result<HttpResponse, Problem> {
    let run = shared.audits.find(id);
    let run = run.ok_or_else(|| Problem::not_found("This node has run no such audit."))?;
    Ok(HttpResponse::Ok().json(run.body()))
}
