/**
 * @module
 * The parts of the test suite. `npm test` (scripts/test.mjs) runs them one after the other; `vitest run --project unit`
 * runs one. Unit and cross tests share the cores; the others start real runtimes and therefore run one file at a time.
 */
import { defineConfig } from 'vitest/config'

const NOT_TESTS = ['**/node_modules/**', '**/dist/**', '**/.wrangler/**']

/** Tests that start other processes: alone on the machine, and with time to spare on a slow one. */
function serial(name: string, groupOrder: number) {
  return {
    test: {
      name,
      include: [`test/${name}/**/*.test.ts`],
      exclude: NOT_TESTS,
      fileParallelism: false,
      testTimeout: 180_000,
      hookTimeout: 180_000,
      globalSetup: ['test/shipped.ts'],
      sequence: { groupOrder },
    },
  }
}

export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: 'unit',
          include: ['{engine,functions,weights-tool}/src/**/*.test.ts'],
          exclude: NOT_TESTS,
          testTimeout: 30_000,
        },
      },
      {
        test: {
          name: 'cross',
          include: ['test/**/*.test.ts'],
          exclude: [...NOT_TESTS, 'test/{runtimes,e2e,budget}/**'],
          testTimeout: 120_000,
          hookTimeout: 120_000,
          sequence: { groupOrder: 1 },
        },
      },
      serial('runtimes', 2),
      serial('e2e', 3),
      serial('budget', 4),
    ],
  },
})
