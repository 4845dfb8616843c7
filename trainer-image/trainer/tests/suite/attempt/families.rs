//! Base models of every family.

use graftwork_model::config::Family;
use graftwork_model::peft::Adapter;

use super::*;

#[test]
fn every_family_is_trained_on_scored_and_named_by_its_adapter() {
    let world = World::new();
    let folder = world.dir.path().join("base");
    for (number, family) in Family::ALL.into_iter().enumerate() {
        let made = TinyShape::default().family_config(family);
        let random = BaseModel::random(made.clone(), 5);
        let base = BaseModel::from_tensors(made.clone(), with_large_logits(&random)).unwrap();
        save_base(&folder, &base).unwrap();
        let mut config = world.config(&format!("family-{number}"));
        config["resolved"]["base"]["digest"] = json!(base_digest(&folder).unwrap());
        config["hyperparameters"]["maximumSteps"] = json!(200);
        let code = world.run(&config);
        assert_eq!(code, 0, "{family:?}: {:?}", world.summary(&config));
        let result = world.result(&config);
        let loss = result.metrics.iter().find(|it| it.name == "loss").unwrap();
        assert!(loss.value < 0.9 * loss.baseline, "{family:?}: {loss:?}");
        let adapter = Adapter::load(&world.store().join(&result.folder)).unwrap();
        adapter.verify(&made).unwrap();
        assert_eq!(adapter.digest(), result.digest.as_str());
    }
}
