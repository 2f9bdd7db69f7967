//! The Live API: `BidiGenerateContent`, in text.

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::session::{GO_AWAY, Session};
use super::socket::{End, Socket, upgrade};
use crate::simulator::refusal::ErrorResponse;
use crate::simulator::request::GenerateContentRequest;
use crate::simulator::response::{Candidate, PromptOutcome, SimulatedResponse, pieces};
use crate::simulator::state::Simulator;

/// Opens a session.
pub(super) async fn open(State(simulator): State<Simulator>, request: Request) -> Response {
    upgrade(simulator, request, serve)
}

async fn serve(simulator: Simulator, mut socket: Socket, key: String) {
    let opened = set_up(simulator, &mut socket, key).await;
    let (session, resumes) = match opened {
        Ok(opened) => opened,
        Err(End::Closed) => return,
        Err(End::Refused(refusal)) => return socket.refuse(&refusal).await,
    };
    match converse(&session, &mut socket, resumes).await {
        End::Closed => session.end(),
        End::Refused(refusal) => {
            session.refused(&refusal);
            socket.refuse(&refusal).await;
        }
    }
}

/// Handles the first message. Returns the session and whether the client wants resumption handles.
async fn set_up(
    simulator: Simulator,
    socket: &mut Socket,
    key: String,
) -> Result<(Session, bool), End> {
    let message = socket.receive().await?;
    let Some(model) = message["setup"]["model"].as_str() else {
        return Err(ErrorResponse::invalid_argument("The first message must be setup.").into());
    };
    let session = Session::open(simulator, key, model)?;
    let setup = &message["setup"];
    let resumes = ["sessionResumption", "session_resumption"];
    let resumes = resumes.iter().any(|name| !setup[name].is_null());
    socket.send(&json!({"setupComplete": {}})).await?;
    Ok((session, resumes))
}

/// Answers turn after turn, and says why the session ends.
async fn converse(session: &Session, socket: &mut Socket, resumes: bool) -> End {
    let mut turns = Vec::new();
    loop {
        match exchange(session, socket, &mut turns, resumes).await {
            Ok(true) => {}
            Ok(false) => {
                socket.close().await;
                return End::Closed;
            }
            Err(end) => return end,
        }
    }
}

/// Handles one message. Returns whether the session continues.
async fn exchange(
    session: &Session,
    socket: &mut Socket,
    turns: &mut Vec<Value>,
    resumes: bool,
) -> Result<bool, End> {
    let message = socket.receive().await?;
    if !add_turns(turns, &message)? {
        return Ok(true);
    }
    let body = json!({"contents": std::mem::take(turns)}).to_string();
    let request = GenerateContentRequest::parse(body.as_bytes())?;
    let (messages, after) = socket.unless_closed(session.turn(&request, messages)).await?;
    if after.closes {
        return Err(End::Closed);
    }
    for message in messages {
        socket.send(&message).await?;
    }
    if resumes {
        let handle = session.simulator.next_response_id();
        let update = json!({"newHandle": handle, "resumable": true});
        socket.send(&json!({"sessionResumptionUpdate": update})).await?;
    }
    if after.goes_away {
        let time_left = format!("{}s", GO_AWAY.as_secs_f64());
        socket.send(&json!({"goAway": {"timeLeft": time_left}})).await?;
        sleep(GO_AWAY).await;
    }
    Ok(!after.goes_away)
}

/// Adds the turns of a message. Returns whether the model is to answer.
fn add_turns(turns: &mut Vec<Value>, message: &Value) -> Result<bool, ErrorResponse> {
    let of = |value: &Value, camel: &str, snake: &str| {
        value.get(camel).or_else(|| value.get(snake)).cloned().unwrap_or_default()
    };
    let content = of(message, "clientContent", "client_content");
    let realtime = of(message, "realtimeInput", "realtime_input");
    let tools = of(message, "toolResponse", "tool_response");
    if !content.is_null() {
        match &content["turns"] {
            Value::Array(several) => turns.extend(several.iter().cloned()),
            Value::Null => {}
            one => turns.push(one.clone()),
        }
        return Ok(of(&content, "turnComplete", "turn_complete") == json!(true));
    }
    if let Some(text) = realtime["text"].as_str() {
        turns.push(json!({"role": "user", "parts": [{"text": text}]}));
        return Ok(true);
    }
    if !tools.is_null() {
        turns.push(json!({"role": "user", "parts": [{"text": tools.to_string()}]}));
        return Ok(true);
    }
    if realtime.is_null() {
        return Err(ErrorResponse::invalid_argument("The message is not one of a client."));
    }
    // Audio and video are accepted and ignored.
    Ok(false)
}

/// The messages of a turn of the model. The last one has the usage of this turn.
fn messages(response: &SimulatedResponse<'_>, chunks: usize) -> Vec<Value> {
    let text = match &response.outcome {
        PromptOutcome::Candidate(Candidate { text, .. }) => &**text,
        PromptOutcome::Blocked(_) => "",
    };
    let content = |text: &&str| {
        let turn = json!({"parts": [{"text": text}], "role": "model"});
        json!({"serverContent": {"modelTurn": turn}})
    };
    let mut messages: Vec<Value> = pieces(text, chunks).iter().map(content).collect();
    messages.push(json!({"serverContent": {"generationComplete": true}}));
    let (input, output) = (response.prompt_tokens, response.billed_output_tokens());
    messages.push(json!({
        "serverContent": {"turnComplete": true},
        "usageMetadata": {
            "promptTokenCount": input,
            "responseTokenCount": output,
            "totalTokenCount": input + output,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": input}],
            "responseTokensDetails": [{"modality": "TEXT", "tokenCount": output}],
        },
    }));
    messages
}
