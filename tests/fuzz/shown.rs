//! What every incident must stand: being shown.

use tracer::report::{Incident, Report as _, json::Json, text::Text};

/// As JSON, and as a page for a terminal, which nothing in it can steer.
pub fn everywhere(incident: &Incident) {
    let mut json = Vec::new();
    Json.incident(&mut json, incident).expect("a vector takes everything");
    let text = std::str::from_utf8(&json).expect("JSON is text").trim_end();
    assert!(
        text.starts_with('{') && text.ends_with('}') && !text.contains('\n'),
        "not one object a line: {text}"
    );
    let mut page = Vec::new();
    Text::new(Some(100)).incident(&mut page, incident).expect("a vector takes everything");
    let page = String::from_utf8(page).expect("a page is text");
    // Colours are ours, and the only ones to write an escape.
    let mut rest = page.as_str();
    while let Some((before, after)) = rest.split_once("\x1b[") {
        assert!(!before.contains(|c: char| c.is_control() && c != '\n'), "{before:?}");
        rest = after.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        rest = rest.strip_prefix('m').expect("no colour");
    }
    assert!(!rest.contains(|c: char| c.is_control() && c != '\n'), "{rest:?}");
}
