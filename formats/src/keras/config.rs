//! What a model's configuration says of its batch normalizations.
use batchnorm::{Renorm, RenormClip};
use serde_json::Value;

/// The settings of one layer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Settings {
    /// The layer's name, behind the names of the models that it is in: `block/bn`.
    pub name: String,
    /// Where Keras 3 stores its variables: `layers/functional/layers/batch_normalization_1`.
    pub group: String,
    pub epsilon: Option<f64>,
    /// The weight of the old value.
    pub momentum: Option<f64>,
    pub scale: Option<bool>,
    pub center: Option<bool>,
    pub renorm: Option<bool>,
    /// How it renormalizes, where it does.
    pub renorm_rules: Option<Renorm>,
    /// Keras 2's, of the layers that TensorFlow 1 has.
    pub virtual_batch_size: Option<usize>,
    pub axis: Option<i64>,
}

/// The batch normalizations of a model and of those in it, in the model's order.
pub(super) fn settings(model: &Value) -> Vec<Settings> {
    let mut found = Vec::new();
    walk(model, "", "", &mut found);
    found
}

fn walk(model: &Value, names: &str, groups: &str, found: &mut Vec<Settings>) {
    // Keras 1's Sequential has the list itself.
    let config = &model["config"];
    let layers = config["layers"].as_array().or_else(|| config.as_array());
    // Keras 3 names a group by its class, and counts.
    let mut counts = std::collections::HashMap::new();
    for layer in layers.into_iter().flatten() {
        let (Some(class), config) = (layer["class_name"].as_str(), &layer["config"]) else {
            continue;
        };
        let name = config["name"].as_str().or_else(|| layer["name"].as_str()).unwrap_or_default();
        let name = format!("{names}{name}");
        let snake = snake_case(class.rsplit('>').next().unwrap_or(class));
        let count = counts.entry(snake.clone()).or_insert(0);
        let group = match *count {
            0 => format!("{groups}layers/{snake}"),
            n => format!("{groups}layers/{snake}_{n}"),
        };
        *count += 1;
        if !class.contains("BatchNormalization") {
            walk(layer, &format!("{name}/"), &format!("{group}/"), found);
            continue;
        }
        let axis = &config["axis"];
        found.push(Settings {
            name,
            group,
            epsilon: config["epsilon"].as_f64(),
            momentum: config["momentum"].as_f64(),
            scale: config["scale"].as_bool(),
            center: config["center"].as_bool(),
            renorm: config["renorm"].as_bool(),
            renorm_rules: renorm_rules(config),
            virtual_batch_size: config["virtual_batch_size"].as_u64().map(|size| size as usize),
            // Keras 2 has a list, of one axis mostly.
            axis: axis.as_i64().or_else(|| match axis.as_array()?.as_slice() {
                [one] => one.as_i64(),
                _ => None,
            }),
        });
    }
}

/// Keras' `renorm_clipping` and `renorm_momentum` of a layer that renormalizes.
fn renorm_rules(config: &Value) -> Option<Renorm> {
    config["renorm"].as_bool().filter(|renorm| *renorm)?;
    let clipping = &config["renorm_clipping"];
    let bound = |name: &str| clipping[name].as_f64();
    let mut clip = RenormClip::NONE;
    (clip.r_min, clip.r_max, clip.d_max) = (bound("rmin"), bound("rmax"), bound("dmax"));
    let rules = Renorm::keras().clip(clip);
    let old = config["renorm_momentum"].as_f64();
    Some(old.map_or(rules, |old| rules.momentum(1.0 - old)))
}

/// `BatchNormalization` as `batch_normalization`, by Keras' rule.
fn snake_case(class: &str) -> String {
    let chars: Vec<char> = class.chars().collect();
    let mut snake = String::new();
    for (i, &c) in chars.iter().enumerate() {
        let before = i.checked_sub(1).map(|i| chars[i]);
        let word = chars.get(i + 1).is_some_and(|next| next.is_ascii_lowercase());
        let begins = before.is_some_and(|b| b.is_ascii_lowercase() || (word && b != '_'));
        if c.is_ascii_uppercase() && begins {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::{settings, snake_case};
    use batchnorm::{Renorm, RenormClip};
    use serde_json::json;

    #[test]
    fn renormalization_and_virtual_batches_are_read() {
        let of = |config| json!({ "class_name": "BatchNormalization", "config": config });
        let layers = [
            of(
                json!({ "name": "a", "renorm": true, "renorm_clipping": { "rmax": 3.0, "dmax": 5.0 },
                       "renorm_momentum": 0.75 }),
            ),
            of(json!({ "name": "b", "renorm": true, "renorm_clipping": null })),
            of(json!({ "name": "c", "renorm": false, "renorm_clipping": { "rmin": 0.5 },
                       "virtual_batch_size": 8 })),
        ];
        let found = settings(&json!({ "config": { "layers": layers } }));
        let rules: Vec<_> = found.iter().map(|layer| layer.renorm_rules).collect();
        let clip = RenormClip::NONE.r_max(3.0).d_max(5.0);
        let clipped = Renorm::keras().clip(clip).momentum(0.25);
        assert_eq!(rules, [Some(clipped), Some(Renorm::keras()), None]);
        let sizes: Vec<_> = found.iter().map(|layer| layer.virtual_batch_size).collect();
        assert_eq!(sizes, [None, None, Some(8)]);
    }

    #[test]
    fn classes_are_named_by_keras_rule() {
        // Right side: keras.src.utils.naming.to_snake_case.
        for (class, snake) in [
            ("BatchNormalization", "batch_normalization"),
            ("Conv2D", "conv2d"),
            ("Conv2DTranspose", "conv2d_transpose"),
            ("InputLayer", "input_layer"),
            ("LSTM", "lstm"),
            ("Functional", "functional"),
        ] {
            assert_eq!(snake_case(class), snake);
        }
    }
}
