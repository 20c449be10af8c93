/**
 * @module
 * The rounds: every program does each of its tasks once a round, one after the other, so that whatever the machine does in
 * between happens to all of them.
 */

import { childHost } from './hosts/child.ts'
import { chromiumHost, wllamaHost } from './hosts/chromium.ts'
import type { Host, Speed, Task } from './hosts/task.ts'
import { workerdHost } from './hosts/workerd.ts'
import { CACHE, GGUF, PACKS, SHIPPED, TEACHER } from './paths.ts'

/** Prompts of the rows on bandwidth, and the tokens decoded after them. */
export const CONTEXTS = [128, 1024] as const
const CONTEXT_DECODED = 64
export const PROMPT = 512

/** One thing that was measured, in every round. */
export interface Measurement {
  readonly host: string
  /** A pack, a GGUF file, or `read` for the speed of memory. */
  readonly model: string
  readonly kernels?: 'plain' | 'relaxed'
  /** Tokens of the prompt. */
  readonly context: number
  readonly speeds: Speed[]
  /** 10^9 bytes a second. */
  readonly reads: number[]
}

export interface Plan {
  readonly rounds: number
  readonly tokens: number
  readonly prompt: (length: number) => number[]
  readonly ours: boolean
  readonly peers: boolean
}

interface Row {
  readonly host: Host
  /** Absent: reading memory. */
  readonly task?: Task
  readonly measurement: Measurement
}

export async function measure({ rounds, tokens, prompt, ours, peers }: Plan): Promise<Measurement[]> {
  const hosts: Host[] = []
  try {
    const rows: Row[] = []
    const add = (host: Host, task?: Task) => {
      const { model = 'read', kernels } = task ?? {}
      const measured = {
        host: host.name,
        model,
        ...(kernels && { kernels }),
        context: task?.prompt.length ?? 0,
      }
      rows.push({ host, ...(task && { task }), measurement: { ...measured, speeds: [], reads: [] } })
    }
    if (ours) {
      hosts.push(childHost('Node', 'node', [PACKS]), await workerdHost(), await chromiumHost())
      for (const host of hosts) {
        for (const kernels of ['relaxed', 'plain'] as const) {
          for (const model of [TEACHER, SHIPPED])
            add(host, { model, kernels, prompt: prompt(PROMPT), tokens })
        }
        for (const context of CONTEXTS) {
          add(host, { model: TEACHER, kernels: 'relaxed', prompt: prompt(context), tokens: CONTEXT_DECODED })
        }
        add(host)
      }
    }
    if (peers) {
      const peerHosts = [childHost('llama.cpp', 'llama', [CACHE]), await wllamaHost()]
      hosts.push(...peerHosts)
      for (const host of peerHosts) {
        for (const model of Object.values(GGUF)) add(host, { model, prompt: prompt(PROMPT), tokens })
      }
    }
    const texts = new Map<string, string>()
    // Round 0 loads, compiles and warms up.
    for (let round = 0; round <= rounds; round++) {
      console.error(round === 0 ? 'warming up …' : `round ${round} of ${rounds} …`)
      // Every other round backwards: nobody always follows the same one.
      for (const row of round % 2 === 0 ? rows : rows.toReversed()) await runRow(row, round > 0, texts)
    }
    return rows.map(({ measurement }) => measurement)
  } finally {
    await Promise.allSettled(hosts.map((host) => host.close()))
  }
}

async function runRow({ host, task, measurement }: Row, counts: boolean, texts: Map<string, string>) {
  if (!task) {
    const read = await host.read()
    if (counts) measurement.reads.push(read)
    return
  }
  const { text, ...speed } = await host.generate(task)
  if (counts) measurement.speeds.push(speed)
  if (task.kernels === undefined) return
  const key = `${task.model} after ${task.prompt.length} tokens`
  if ((texts.get(key) ?? text) !== text) throw new Error(`${host.name} writes something else: ${key}`)
  texts.set(key, text)
}
