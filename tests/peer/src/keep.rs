//! Leaves out of a JSON document what nobody asked for, before it goes over the serial line, where every byte costs the
//! machine thousands of instructions. Knows nothing of what documents say.

use serde_json::Value;

/// Keeps only those members of objects, at any depth, that have one of some keys.
pub fn keep(document: &mut Value, keys: &[String]) {
    match document {
        Value::Object(members) => {
            members.retain(|key, _| keys.contains(key));
            members.values_mut().for_each(|member| keep(member, keys));
        }
        Value::Array(elements) => elements.iter_mut().for_each(|element| keep(element, keys)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_shape_stays_and_the_rest_goes() {
        let mut document = json!({
            "interfaces": [{ "name": "web", "drops": { "queue_full": 3, "other": 1 }, "hold": {} }, 7],
            "uplinks": []
        });
        keep(&mut document, &["interfaces", "name", "drops", "queue_full"].map(str::to_owned));
        assert_eq!(document, json!({ "interfaces": [{ "name": "web", "drops": { "queue_full": 3 } }, 7] }));
    }
}
