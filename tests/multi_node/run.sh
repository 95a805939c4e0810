#!/usr/bin/env bash
# A real two-node launch on one machine: two network namespaces are two hosts with their own addresses, `deepspeed
# --hostfile` reaches both through pdsh and sshd, and the ranks talk over the link between them.
#
#   sudo make test-multinode                                 two ZeRO-3 steps of the tiny recipe, on fresh scenes
#   bash tests/multi_node/run.sh RECIPE [key=value ...]      the same with another recipe and its own shards
#   TRAIN=tests/multi_node/ping.py bash tests/multi_node/run.sh    the link alone: one all-reduce, no training
#
# The exit code is that of the training. Hosts, keys and processes are removed however it ends.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PATH="$PWD/.venv/bin:$PATH:/usr/sbin:/sbin"

TIMEOUT=${TIMEOUT:-600}
SSH_PORT=2222
ADDRESSES=(10.77.0.1 10.77.0.2)
HOSTS=("mug$$a" "mug$$b") # names of the namespaces, unique to this run

if [[ $EUID -ne 0 ]]; then
    echo "Network namespaces need root, and this is user $(id -un). Type: sudo make test-multinode" >&2
    exit 2
fi
for command in ip:iproute2 sshd:openssh-server ssh-keygen:openssh-client pdsh:pdsh deepspeed:; do
    if ! command -v "${command%%:*}" >/dev/null; then
        package=${command#*:}
        echo "${command%%:*} not found. Type: ${package:+apt-get install }${package:-make setup}" >&2
        exit 2
    fi
done

WORK=$(mktemp -d)
clean_up() {
    for host in "${HOSTS[@]}"; do
        if ip netns pids "$host" >/dev/null 2>&1; then
            # Some end by themselves between the listing and the kill.
            ip netns pids "$host" | xargs --no-run-if-empty kill -KILL 2>/dev/null || true
            ip netns del "$host"
        fi
    done
    rm -rf "$WORK"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- what the nodes run --------------------------------------------------------------------------------------------
TWO_STEPS="schedule.steps=2 schedule.warmup_steps=0 evaluation.suites={} checkpoint.resume=never"
if [[ -z ${TRAIN:-} && $# -eq 0 ]]; then
    python -m data_prep scenes --out "$WORK/shards" --count 64 --seed 0 --split train
    set -- launch/recipes/tiny_sft.yaml data.scenes.shards="$WORK/shards"
fi
TRAIN=${TRAIN:-launch/train.py $* $TWO_STEPS output=$WORK/run}

# --- two hosts, one cable -------------------------------------------------------------------------------------------
# Both ends are called eth0, since gloo is told one interface name for all nodes.
ip netns add "${HOSTS[0]}"
ip netns add "${HOSTS[1]}"
ip -n "${HOSTS[0]}" link add eth0 type veth peer name eth0 netns "${HOSTS[1]}"
for i in 0 1; do
    ip -n "${HOSTS[i]}" addr add "${ADDRESSES[i]}/24" dev eth0
    ip -n "${HOSTS[i]}" link set lo up
    ip -n "${HOSTS[i]}" link set eth0 up
done

# --- an sshd on each, with keys that die with this run --------------------------------------------------------------
ssh-keygen -q -t ed25519 -N '' -f "$WORK/host_key"
ssh-keygen -q -t ed25519 -N '' -f "$WORK/user_key"
mkdir -p /run/sshd # where Debian's sshd separates its privileges
for i in 0 1; do
    ip netns exec "${HOSTS[i]}" "$(command -v sshd)" -f /dev/null -p "$SSH_PORT" \
        -o HostKey="$WORK/host_key" -o AuthorizedKeysFile="$WORK/user_key.pub" -o PidFile="$WORK/sshd$i.pid" \
        -o StrictModes=no -o UsePAM=no -o PermitRootLogin=yes
done
cat >"$WORK/ssh_config" <<CONFIG
Host *
    Port $SSH_PORT
    IdentityFile $WORK/user_key
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
CONFIG

# --- what the launcher needs ----------------------------------------------------------------------------------------
printf '%s slots=1\n' "${ADDRESSES[@]}" >"$WORK/hostfile"
# The launcher forwards few variables by itself; the rest travel through this file.
cat >"$WORK/environment" <<ENVIRONMENT
PATH=$PWD/.venv/bin:/usr/local/bin:/usr/bin:/bin
PYTHONPATH=$PWD
GLOO_SOCKET_IFNAME=eth0
DS_ACCELERATOR=cpu
OMP_NUM_THREADS=1
TORCH_DISTRIBUTED_DEBUG=DETAIL
TORCH_EXTENSIONS_DIR=$PWD/.venv/torch_extensions
HF_HUB_OFFLINE=1
TOKENIZERS_PARALLELISM=false
ENVIRONMENT

# KILL and not TERM at the time limit: on TERM the launcher would stop every DeepSpeed job of this machine by name.
# In the background, so that a signal to this script is heard at once and not when the training is over.
# shellcheck disable=SC2086  # TRAIN is a command line
timeout --signal=KILL "$TIMEOUT" ip netns exec "${HOSTS[0]}" \
    env DS_ACCELERATOR=cpu DS_ENV_FILE="$WORK/environment" PDSH_SSH_ARGS_APPEND="-F $WORK/ssh_config" \
    deepspeed --hostfile "$WORK/hostfile" --master_addr "${ADDRESSES[0]}" --no_ssh_check $TRAIN &
code=0
wait $! || code=$?

case $code in
    0) echo "two nodes: ok" ;;
    137) echo "two nodes: not finished after $TIMEOUT s, stopped" >&2 ;;
    *) echo "two nodes: failed with exit code $code" >&2 ;;
esac
exit "$code"
