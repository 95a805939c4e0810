#!/usr/bin/env bash
# The whole workflow in a few minutes on two CPU cores: render shards, fine-tune the shipped tiny model with LoRA under ZeRO-3
# on two processes, kill it, resume, evaluate on held-out scenes, write report.html. `make demo` sets up and runs this.
set -euo pipefail
cd "$(dirname "$0")/.."

work=${DEMO_FOLDER:-runs/demo}
shards=$work/shards
run=$work/sft
train=(deepspeed --num_gpus 2 --master_port "${DEMO_PORT:-29511}" launch/train.py launch/recipes/tiny_sft.yaml
       "output=$run" "data.scenes.shards=$shards/train"
       "evaluation.suites.questions.shards=$shards/val" "evaluation.suites.generation.shards=$shards/val")

say() { printf '\n== %s\n' "$*"; }

say "1/5 render scenes into shards"
python -m data_prep scenes --out "$shards/train" --count 1500 --seed 11 --split train
python -m data_prep scenes --out "$shards/val" --count 200 --seed 12 --split val

say "2/5 train; the demo kills it (SIGKILL) after its first checkpoint"
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

say "3/5 the same command again: resumes, finishes, evaluates before and after"
"${train[@]}"

say "4/5 export the adapters and the merged model"
rm -rf "$work/adapter" "$work/model"   # of an earlier demo
python launch/export.py "$run" --out "$work/adapter" --adapter
python launch/export.py "$run" --out "$work/model" --dtype float16

say "5/5 done"
echo "report: $(pwd)/$run/report.html"
