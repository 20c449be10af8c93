/**
 * @module
 * Deno: `deno run --allow-net deno.ts <address> <tasks as JSON>`. Prints the results as JSON.
 */
import { runProbe } from './web.ts'

const [address, tasks] = process.argv.slice(2)
console.log(JSON.stringify(await runProbe(address, JSON.parse(tasks))))
