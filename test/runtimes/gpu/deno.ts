/**
 * @module
 * Deno: `deno run --allow-net --allow-read gpu/deno.ts <address> <models as JSON>`. Prints the result as JSON.
 */
import { runGpuProbe } from './web.ts'

const [address, models] = process.argv.slice(2)
console.log(JSON.stringify(await runGpuProbe(address, JSON.parse(models), true)))
process.exit(0)
