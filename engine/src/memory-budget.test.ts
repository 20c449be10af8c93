import fc from 'fast-check'
import { expect, test } from 'vitest'
import { MemoryBudget } from './memory-budget.ts'

test('what is taken is never more than there is, and a model has one share', () => {
  const model = fc.constantFrom('a', 'b', 'c')
  const action = fc.oneof(
    fc.record({ take: fc.nat(60), model }),
    fc.record({ take: fc.constant(undefined), model }),
  )
  fc.assert(
    fc.property(fc.array(action), (actions) => {
      const budget = new MemoryBudget(100)
      const shares = new Map<string, number>()
      for (const { take, model } of actions) {
        const others = [...shares].reduce((sum, [name, bytes]) => (name === model ? sum : sum + bytes), 0)
        expect(budget.leftFor(model)).toBe(100 - others)
        if (take === undefined) {
          budget.giveBack(model)
          shares.delete(model)
        } else if (take > 100 - others) {
          expect(() => budget.take(model, take)).toThrow(RangeError)
        } else {
          budget.take(model, take)
          shares.set(model, take)
        }
      }
    }),
  )
})
