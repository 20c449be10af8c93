/**
 * @module
 * Runs pytest in the trainer's environment, which it makes if it is not there: `node scripts/pytest.ts [arguments of pytest]`.
 */
import { runTrainer } from '@sparsedge/weights-tool/trainer'

try {
  process.exitCode = await runTrainer('pytest', process.argv.slice(2))
} catch (error) {
  console.error(error instanceof Error ? error.message : error)
  process.exitCode = 1
}
