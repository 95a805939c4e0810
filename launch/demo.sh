#!/usr/bin/env bash
# The whole workflow in a few minutes on two CPU cores: render scenes, teach the shipped tiny model the order of objects in space
# and to draw depth, with UniGame, UniMRG and AIA under ZeRO-3 on two processes, kill it, resume, evaluate before and after,
# write report.html.
# `make demo` sets up and runs this; DEMO_SEED=3 for another seed.
set -euo pipefail
cd "$(dirname "$0")/.."

work=${DEMO_FOLDER:-runs/demo}
shards=$work/shards
run=$work/run
train=(deepspeed --num_gpus 2 --master_port "${DEMO_PORT:-29511}" launch/train.py launch/recipes/tiny_demo.yaml
       "output=$run" "seed=${DEMO_SEED:-0}" "data.order.shards=$shards/order" "data.scenes.shards=$shards/train"
       "evaluation.suites.new_questions.shards=$shards/order_val" "evaluation.suites.old_questions.shards=$shards/val"
       "evaluation.suites.depth.shards=$shards/val")

say() { printf '\n== %s\n' "$*"; }

say "1/5 render scenes into shards"
scenes() { megaunigame prepare scenes --out "$shards/$1" --count "$2" --shard-size 500 --workers 2 "${@:3}"; }
scenes train 1500 --seed 11 --split train
scenes order 1000 --seed 11 --split train --questions order
scenes val 200 --seed 12 --split val
scenes order_val 200 --seed 12 --split val --questions order

say "2/5 evaluate and train; the demo kills it (SIGKILL) after its first checkpoint"
printf '%s ' "${train[@]}"; echo
rm -rf "$run"
setsid "${train[@]}" &
launcher=$!
trap 'kill -KILL -- -$launcher 2>/dev/null || true' EXIT
until [ -f "$run/checkpoints/latest" ]; do
  kill -0 "$launcher" 2>/dev/null || { echo "the run ended before its first checkpoint" >&2; exit 1; }
  sleep 1
done
kill -KILL -- "-$launcher" # the launcher's process group: both ranks and their loaders are in it
wait "$launcher" 2>/dev/null || true
trap - EXIT
echo "killed after $(cat "$run/checkpoints/latest")"

say "3/5 the same command again: resumes, finishes, evaluates; changes since the start are shown as 'before -> after'"
"${train[@]}"

say "4/5 export the model"
rm -rf "$work/model"   # of an earlier demo
python launch/export.py "$run" --out "$work/model" --dtype float16

say "5/5 done"
echo "never asked before: the order of all objects (new_questions above); never drawn before: depth. What it could answer is kept"
echo "(old_questions). Pictures, attacked ones among them, are in the report:"
realpath "$run/report.html"
