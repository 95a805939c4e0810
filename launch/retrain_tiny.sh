#!/usr/bin/env bash
# Better pictures for the shipped tiny Janus, on two quiet CPU cores: sharper decoder, then more training on captions, from the
# shipped weights. Interrupted, it goes on where it was: type the same command.
#
#   bash launch/retrain_tiny.sh runs/retrain
#   STEPS=4000 bash launch/retrain_tiny.sh runs/retrain      longer: the pictures still get better after 1500 steps
#
# The minutes are those of two cores without bfloat16 instructions, next to other work. Choose STEPS before the first start, or delete
# FOLDER/joint: another number changes the learning rates of all steps.
# The new model is in FOLDER/model, all numbers of its card in FOLDER/card.txt. Nothing in the repository is changed.
set -euo pipefail
cd "$(dirname "$0")/.."

steps=${STEPS:-1500}
work=${1:?"usage: bash launch/retrain_tiny.sh FOLDER"}
mkdir -p "$work"
export DS_ACCELERATOR=cpu OMP_NUM_THREADS=1
shards=$work/shards
began=$(date +%s)

# stage NAME MINUTES COMMAND...: runs a function unless an earlier start has finished it.
minutes_left=83
stage() {
  local name=$1 minutes=$2
  if [ -f "$work/$name.done" ]; then
    echo "== $name: done"
  else
    printf '\n== %s: about %s minutes; about %s until the end (%s)\n' "$name" "$minutes" "$minutes_left" "$(date +%H:%M)"
    "$name"
    touch "$work/$name.done"
    echo "== $name: done, $((($(date +%s) - began) / 60)) minutes since this start"
  fi
  minutes_left=$((minutes_left - minutes))
}

scenes() {
  local split count seed
  for s in train:60000:3 val:1000:2 ood:1000:2 adversarial:1000:2; do
    IFS=: read -r split count seed <<< "$s"
    megaunigame prepare scenes --out "$shards/$split" --count "$count" --seed "$seed" --split "$split" --workers 2
  done
}

decoder() {
  python -m megaunigame.tiny_world.decoder --data "$shards" --out "$work/decoder" --threads 2 --steps 1200
}

joint() {
  deepspeed --num_gpus 2 launch/train.py launch/recipes/tiny_pretrain_pictures.yaml "model.path=$work/decoder/janus" \
    "output=$work/joint" "schedule.steps=$steps" "data.scenes.shards=$shards/train" \
    "evaluation.suites.questions.shards=$shards/val" "evaluation.suites.generation.shards=$shards/val"
}

model() {
  rm -rf "$work/model"
  python launch/export.py "$work/joint" --out "$work/model" --dtype float16
}

card() {
  deepspeed --num_gpus 2 launch/evaluate.py launch/recipes/tiny_evaluation.yaml "model.path=$work/model" \
    "output=$work/evaluation" "data.scenes.shards=$shards/train" \
    $(for suite in held_out generation reconstruction tokenizer losses; do echo "evaluation.suites.$suite.shards=$shards/val"; done) \
    "evaluation.suites.ood.shards=$shards/ood" "evaluation.suites.adversarial.shards=$shards/adversarial" | tee "$work/card.txt"
}

stage scenes 7
stage decoder 12
stage joint 60
stage model 1
stage card 3
echo "the new model: $work/model; its numbers: $work/card.txt; its pictures: $work/joint/report.html"
