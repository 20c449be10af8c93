/**
 * @module
 * The progress bar of every long command, on stderr, so that stdout stays the result.
 */
import cliProgress from 'cli-progress'

/** @param unit what is counted, such as `M weights`; `doing` of a step names what was just done */
export function progressBar(total: number, unit: string) {
  const bar = new cliProgress.SingleBar(
    {
      format: `{bar} {percentage} % of {total} ${unit}, {eta_formatted} left  {doing}`,
      stream: process.stderr,
      barsize: 30,
    },
    cliProgress.Presets.shades_classic,
  )
  bar.start(total, 0, { doing: '' })
  return {
    step: (amount: number, doing: string) => bar.increment(amount, { doing }),
    stop: () => {
      bar.update({ doing: '' })
      bar.stop()
    },
  }
}
