/**
 * Writes the answers in transcripts.json anew. They are the shipped stack's own, so they prove nothing until someone has
 * read them: read what changed, and put what you think of it into `review`.
 *
 *     npm run build && node test/goldens/transcripts.ts
 */
import { writeFile } from 'node:fs/promises'
import { golden } from '../parity/shipped.ts'
import { answer, shippedEngine, type Transcript, Transcripts } from '../parity/transcripts.ts'

const engine = await shippedEngine()
const transcripts: Transcript[] = []
for (const { review, messages } of await golden('transcripts.json', Transcripts)) {
  transcripts.push({ review, messages, ...(await answer(engine, messages)) })
}
await writeFile(
  new URL('transcripts.json', import.meta.url),
  `${JSON.stringify(transcripts, null, 2)}\n`,
)
